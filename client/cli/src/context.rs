//! `cairn context`: which clusters this machine knows.

use std::path::Path;

use cairn_client::config::{ConfigFile, Context, default_path, read_default};
use serde::Serialize;

use crate::args::ContextCommand;
use crate::connect::Target;
use crate::failure::{Exit, Failure};
use crate::output::{Output, shown, table};

/// A context without its secrets.
#[derive(Debug, Serialize)]
struct ContextDocument {
    name: String,
    current: bool,
    endpoints: Vec<String>,
    ca: String,
    credentials: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
}

pub fn run(command: ContextCommand, target: &Target, output: &Output) -> Result<Exit, Failure> {
    let (path, file) = match &command {
        // It may write the first one.
        ContextCommand::Set { .. } => {
            let path = default_path()?;
            let file = ConfigFile::read(&path)?;
            (path, file)
        }
        _ => read_default()?,
    };
    match command {
        ContextCommand::List => list(&file, output),
        ContextCommand::Show { name } => {
            let name = name.as_deref().or(target.context_name());
            let Some(context) = file.context(name, &path)? else {
                return Err(Failure::not_found("there is no current context", "see `cairn context list`"));
            };
            show(&file, context, output);
        }
        ContextCommand::Use { name } => {
            file.context(Some(&name), &path)?;
            change(file, &path, output, &name, "using", |file| file.current = Some(name.clone()))?;
        }
        ContextCommand::Set { name } => {
            let context = target.describe(name.clone())?;
            // What could not be used is not written.
            context.client_config(path.parent().unwrap_or(Path::new(""))).map_err(|error| {
                Failure::usage(
                    error.to_string(),
                    "give --endpoint and --ca-file, and at most one of token and token file",
                )
            })?;
            change(file, &path, output, &name, "wrote", |file| {
                file.set(context);
                file.current.get_or_insert_with(|| name.clone());
            })?;
        }
        ContextCommand::Remove { name } => {
            file.context(Some(&name), &path)?;
            change(file, &path, output, &name, "removed", |file| {
                file.contexts.retain(|context| context.name != name);
                file.current.take_if(|current| *current == name);
            })?;
        }
    }
    Ok(Exit::Ok)
}

fn change(
    mut file: ConfigFile,
    path: &Path,
    output: &Output,
    name: &str,
    verb: &'static str,
    change: impl FnOnce(&mut ConfigFile),
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Document<'a> {
        context: &'a str,
        done: &'static str,
    }
    change(&mut file);
    file.write(path)?;
    output.done(&Document { context: name, done: verb }, || format!("{verb} context {}\n", shown(name)));
    Ok(())
}

fn is_current(file: &ConfigFile, context: &Context) -> bool {
    match &file.current {
        Some(current) => *current == context.name,
        None => file.contexts.len() == 1,
    }
}

fn document(file: &ConfigFile, context: &Context) -> ContextDocument {
    let path = |path: &std::path::PathBuf| path.display().to_string();
    let credentials = match (&context.token, &context.token_file, &context.certificate_file) {
        (Some(_), _, _) => "token".to_owned(),
        (None, Some(file), _) => format!("token in {}", path(file)),
        (None, None, Some(file)) => format!("certificate {}", path(file)),
        (None, None, None) => "none".to_owned(),
    };
    ContextDocument {
        name: context.name.clone(),
        current: is_current(file, context),
        endpoints: context.endpoints.clone(),
        ca: context.ca_file.as_ref().map_or_else(|| "in the file of contexts".to_owned(), path),
        credentials,
        server_name: context.server_name.clone(),
    }
}

fn list(file: &ConfigFile, output: &Output) {
    #[derive(Serialize)]
    struct Document {
        contexts: Vec<ContextDocument>,
    }
    let contexts: Vec<ContextDocument> =
        file.contexts.iter().map(|context| document(file, context)).collect();
    output.answer(&Document { contexts }, || {
        if file.contexts.is_empty() {
            return "there is no context yet: write one with `cairn context set`\n".to_owned();
        }
        let titles = ["", "NAME", "ENDPOINTS"].map(str::to_owned).to_vec();
        let rows = file.contexts.iter().map(|context| {
            let mark = if is_current(file, context) { "*" } else { "" };
            vec![mark.to_owned(), shown(&context.name), shown(&context.endpoints.join(","))]
        });
        table(&std::iter::once(titles).chain(rows).collect::<Vec<_>>(), &[])
    });
}

fn show(file: &ConfigFile, context: &Context, output: &Output) {
    let document = document(file, context);
    output.answer(&document, || {
        let mut rows = vec![
            vec!["name:".to_owned(), shown(&document.name)],
            vec!["endpoints:".to_owned(), shown(&document.endpoints.join(", "))],
            vec!["ca:".to_owned(), shown(&document.ca)],
            vec!["credentials:".to_owned(), shown(&document.credentials)],
        ];
        if let Some(name) = &document.server_name {
            rows.push(vec!["server name:".to_owned(), shown(name)]);
        }
        table(&rows, &[])
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let context = Context { name: "a".into(), token: Some("secret".into()), ..Context::default() };
        let file = ConfigFile { current: None, contexts: vec![context] };
        let shown = serde_json::to_string(&document(&file, &file.contexts[0])).unwrap();
        assert!(!shown.contains("secret") && shown.contains("\"credentials\":\"token\""), "{shown}");
        assert!(shown.contains("\"current\":true"));
    }
}
