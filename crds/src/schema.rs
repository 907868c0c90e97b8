//! Judges a value by a structural schema, as an API server would, for manifests that meet none (`cairn-operator local`).
//!
//! Covers what our generated schemas use: types, required and unknown fields, bounds, patterns, enums, maps' keys and
//! nullable. CEL rules are not evaluated here; the planner's validation repeats the ones that matter.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// At most this many problems of one manifest are reported.
const PROBLEMS_MAX: usize = 20;

/// Every way in which `value` breaks `schema`, each as "path: what is wrong and what is right".
pub fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut judge = Judge { problems: Vec::new() };
    judge.any(schema, value, "");
    judge.problems
}

struct Judge {
    problems: Vec<String>,
}

impl Judge {
    fn say(&mut self, path: &str, what: impl AsRef<str>) {
        if self.problems.len() < PROBLEMS_MAX {
            let path = if path.is_empty() { "the manifest" } else { path.trim_start_matches('.') };
            self.problems.push(format!("{path}: {}", what.as_ref()));
        }
    }

    fn any(&mut self, schema: &Value, value: &Value, path: &str) {
        if value.is_null() {
            if schema["nullable"] != Value::Bool(true) {
                self.say(path, "has no value");
            }
            return;
        }
        if schema["x-kubernetes-int-or-string"] == Value::Bool(true) {
            match value {
                Value::Number(number) if number.is_u64() => {}
                Value::String(text) => self.string(schema, text, path),
                _ => self.say(path, "must be a text such as 10Gi, or a whole number"),
            }
            return;
        }
        match (schema["type"].as_str(), value) {
            (Some("object"), Value::Object(fields)) => self.object(schema, fields, path),
            (Some("array"), Value::Array(items)) => self.array(schema, items, path),
            (Some("string"), Value::String(text)) => self.string(schema, text, path),
            (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
                self.integer(schema, value, path);
            }
            (Some("boolean"), Value::Bool(_)) | (None, _) => {}
            (Some(wanted), found) => {
                self.say(path, format!("must be {}, not {}", article(wanted), name_of(found)))
            }
        }
    }

    fn object(&mut self, schema: &Value, fields: &Map<String, Value>, path: &str) {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                self.say(path, format!("the field `{name}` is missing"));
            }
        }
        let Some(known) = schema["properties"].as_object() else {
            return; // a free-form object, such as metadata
        };
        for (name, field) in fields {
            match known.get(name) {
                Some(schema) => self.any(schema, field, &format!("{path}.{name}")),
                None => {
                    let shown: String = name.chars().take(64).collect();
                    let hint = nearest(name, known.keys()).map_or_else(
                        || format!("known are {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
                        |near| format!("did you mean `{near}`?"),
                    );
                    self.say(path, format!("unknown field `{shown}`; {hint}"));
                }
            }
        }
    }

    fn array(&mut self, schema: &Value, items: &[Value], path: &str) {
        let count = items.len() as u64;
        if schema["minItems"].as_u64().is_some_and(|min| count < min) {
            self.say(path, format!("needs at least {} entries", schema["minItems"]));
        }
        if schema["maxItems"].as_u64().is_some_and(|max| count > max) {
            self.say(path, format!("has {count} entries; at most {} are allowed", schema["maxItems"]));
            return;
        }
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            self.any(&schema["items"], item, &path);
            let key = match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => item.to_string(),
                Some("map") => {
                    let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
                    keys.filter_map(Value::as_str)
                        .map(|key| item[key].to_string())
                        .collect::<Vec<_>>()
                        .join("/")
                }
                _ => continue,
            };
            if !seen.insert(key.clone()) {
                self.say(&path, format!("{key} is listed twice; each entry must be unique"));
            }
        }
    }

    fn string(&mut self, schema: &Value, text: &str, path: &str) {
        let length = text.chars().count() as u64;
        if schema["maxLength"].as_u64().is_some_and(|max| length > max) {
            self.say(path, format!("has {length} characters; at most {} are allowed", schema["maxLength"]));
            return;
        }
        if schema["minLength"].as_u64().is_some_and(|min| length < min) {
            self.say(path, "must not be empty");
            return;
        }
        if let Some(choices) = schema["enum"].as_array()
            && !choices.iter().any(|choice| choice.as_str() == Some(text))
        {
            let choices: Vec<_> = choices.iter().filter_map(Value::as_str).collect();
            self.say(path, format!("{text:?} is not one of {}", choices.join(", ")));
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && !regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
        {
            self.say(path, format!("{text:?} does not match {pattern}"));
        }
    }

    fn integer(&mut self, schema: &Value, value: &Value, path: &str) {
        let number = value.as_i64().map_or(i128::MAX, i128::from);
        // schemars writes bounds as floating-point numbers; ours are small enough to be exact in them.
        let bound = |name: &str| schema[name].as_f64().map(|bound| bound as i128);
        if let (Some(min), Some(max)) = (bound("minimum"), bound("maximum")) {
            if number < min || number > max {
                self.say(path, format!("{value} is out of bounds; allowed are {min} to {max}"));
            }
        } else if schema["format"] == "int32" && i32::try_from(number).is_err() {
            self.say(path, format!("{value} is too large"));
        }
    }
}

fn article(wanted: &str) -> &str {
    match wanted {
        "object" => "a mapping",
        "array" => "a list",
        "string" => "a text (put numbers and words like `no` in quotes)",
        "integer" => "a whole number",
        "boolean" => "true or false",
        other => other,
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

/// The known name within two edits of `name`, if there is one.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a str> {
    if name.len() > 64 {
        return None;
    }
    let name = name.to_lowercase();
    known
        .map(|k| (edits(&name, &k.to_lowercase()), k.as_str()))
        .filter(|(n, _)| *n <= 2)
        .min()
        .map(|(_, k)| k)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let cost = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
pub mod testing {
    //! Evaluates CEL rules of a kind in process, with the API server's functions.

    use kube::CustomResourceExt;
    use serde_json::{Value, json};

    /// The whole schema of a kind.
    pub fn schema_of<K: CustomResourceExt>() -> Value {
        let mut crd = serde_json::to_value(K::crd()).expect("a definition is plain data");
        let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take();
        // The API server fills in the two fields of metadata that rules may use.
        schema["properties"]["metadata"] = json!({ "type": "object", "properties": { "name": { "type": "string" }, "generateName": { "type": "string" } } });
        schema
    }

    /// Messages of the CEL rules that `value` breaks; with `old`, of transition rules too.
    pub fn cel_errors<K: CustomResourceExt>(value: &Value, old: Option<&Value>) -> Vec<String> {
        match kube_cel::Validator::new().validate(&schema_of::<K>(), value, old) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    /// `value` with the fields at some JSON pointers set (the last name may be new).
    pub fn patched(mut value: Value, changes: &[(&str, Value)]) -> Value {
        for (pointer, new) in changes {
            let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
            let parent = value.pointer_mut(parent).expect("the parent exists");
            match parent {
                Value::Array(items) => items[name.parse::<usize>().expect("an index")] = new.clone(),
                other => other[name] = new.clone(),
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (a, b, n) in
            [("", "", 0), ("a", "", 1), ("zones", "zone", 1), ("copies", "copeis", 2), ("abc", "xyz", 3)]
        {
            assert_eq!(edits(a, b), n, "{a} {b}");
        }
    }
}
