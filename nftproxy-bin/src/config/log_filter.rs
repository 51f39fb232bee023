//! Levels of single modules: `source=debug,daemon::run_loop=trace`.

use std::str::FromStr;

use tracing::level_filters::LevelFilter;

/// The modules and their levels. A module is one of this program, with all below it.
pub(crate) fn directives(text: &str) -> Result<Vec<(String, LevelFilter)>, String> {
    let items = text
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty());
    items.map(directive).collect()
}

fn directive(item: &str) -> Result<(String, LevelFilter), String> {
    let expected = || format!("{item:?} does not have the MODULE=LEVEL format");
    let (module, level) = item.split_once('=').ok_or_else(expected)?;
    let is_path = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    if module.is_empty() || !module.chars().all(is_path) {
        return Err(expected());
    }
    let level = LevelFilter::from_str(level)
        .map_err(|_| format!("{item:?}: levels are off, error, warn, info, debug and trace"))?;
    Ok((module.to_owned(), level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_have_levels() {
        let parsed = directives("source=debug, daemon::run_loop=TRACE,").unwrap();
        assert_eq!(
            parsed,
            [
                ("source".to_owned(), LevelFilter::DEBUG),
                ("daemon::run_loop".to_owned(), LevelFilter::TRACE),
            ]
        );
        for text in ["source", "=debug", "source=loud", "a b=info"] {
            assert!(directives(text).is_err(), "{text}");
        }
    }
}
