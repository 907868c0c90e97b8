//! What somebody should look at, although the node runs: shown by `cairn status` of any node, and on no other occasion
//! than that somebody asks. What passes by itself belongs into the log alone.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// Longer texts are cut.
const MAX_CHARS: usize = 1_000;

/// The warnings that hold now, at most one for each matter; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Warnings {
    /// What holds of this matter from now on; true if that is news.
    pub fn set(&self, matter: &'static str, text: Option<String>) -> bool {
        let text = text.map(|text| text.chars().take(MAX_CHARS).collect::<String>());
        let mut warnings = self.0.lock();
        let is_news = warnings.get(matter) != text.as_ref();
        match text {
            Some(text) => warnings.insert(matter, text),
            None => warnings.remove(matter),
        };
        is_news
    }

    /// In the order of their matters.
    pub fn list(&self) -> Vec<String> {
        self.0.lock().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matter_has_one_warning() {
        let warnings = Warnings::default();
        assert!(!warnings.set("b", None));
        assert!(warnings.set("b", Some("first".into())));
        assert!(!warnings.set("b", Some("first".into())));
        assert!(warnings.set("a", Some("x".repeat(5_000))));
        assert!(warnings.set("b", Some("second".into())));
        assert_eq!(warnings.list(), ["x".repeat(MAX_CHARS), "second".into()]);
        assert!(warnings.set("a", None));
        assert_eq!(warnings.clone().list(), ["second"]);
    }
}
