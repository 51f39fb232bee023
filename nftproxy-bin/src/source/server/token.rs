//! Bearer tokens: given ones, and those in files, which are written anew now and then.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, ensure};
use http::HeaderValue;
use tracing::warn;

/// How often a file is looked at, as client-go does.
const PERIOD: Duration = Duration::from_secs(60);

/// What is sent as `Authorization`.
#[derive(Debug)]
pub(super) enum Token {
    None,
    Given(HeaderValue),
    File(File),
}

/// A token in a file.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    /// The last one that was good, and when it was looked for.
    state: Mutex<(Option<HeaderValue>, Option<Instant>)>,
}

impl Token {
    /// A token, or one in a file, which counts more.
    ///
    /// # Errors
    ///
    /// If the given one cannot be sent. A file may come later.
    pub(super) fn new(given: Option<&str>, file: Option<&Path>) -> anyhow::Result<Self> {
        let given = given.filter(|token| !token.trim().is_empty());
        let given = given.map(header).transpose().context("the bearer token")?;
        Ok(match (file, given) {
            (Some(path), given) => Self::File(File {
                path: path.to_owned(),
                state: Mutex::new((given, None)),
            }),
            (None, Some(given)) => Self::Given(given),
            (None, None) => Self::None,
        })
    }

    /// What to send now.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::None => None,
            Self::Given(header) => Some(header.clone()),
            Self::File(file) => file.header(Instant::now()),
        }
    }

    /// The server did not take it: there may be another.
    pub(super) fn refused(&self) {
        if let Self::File(file) = self {
            let mut state = file.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.1 = None;
        }
    }
}

impl File {
    fn header(&self, now: Instant) -> Option<HeaderValue> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, looked_at) = &mut *state;
        if looked_at.is_none_or(|at| now.duration_since(at) >= PERIOD) {
            *looked_at = Some(now);
            match read(&self.path) {
                Ok(token) => *last = Some(token),
                Err(error) => warn!(
                    path = %self.path.display(),
                    "the bearer token cannot be read, and the one before is used: {error:#}"
                ),
            }
        }
        last.clone()
    }
}

fn read(path: &Path) -> anyhow::Result<HeaderValue> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => String::from("\0"),
        text => text?,
    };
    ensure!(!text.trim().is_empty(), "the file is empty");
    header(&text)
}

fn header(token: &str) -> anyhow::Result<HeaderValue> {
    let mut header = HeaderValue::try_from(format!("Bearer {}", token.trim()))
        .ok()
        .context("it has characters that cannot be sent")?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(token: &Token) -> Option<String> {
        let header = token.header()?;
        Some(header.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_newline_at_the_end_is_none_of_the_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "abc\n").unwrap();
        let token = Token::new(None, Some(file.path())).unwrap();
        assert_eq!(text(&token).unwrap(), "Bearer abc");
        let token = Token::new(Some(" def\r\n"), None).unwrap();
        assert_eq!(text(&token).unwrap(), "Bearer def");
    }

    #[test]
    fn a_token_that_cannot_be_sent_is_an_error() {
        for token in ["a\nb", "a\0b", "\u{7f}"] {
            let error = Token::new(Some(token), None).unwrap_err();
            let error = format!("{error:#}");
            assert_eq!(
                error,
                "the bearer token: it has characters that cannot be sent"
            );
        }
        assert!(matches!(Token::new(Some(""), None).unwrap(), Token::None));
    }

    #[test]
    fn a_file_is_read_anew_and_the_last_good_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = Token::new(Some("given"), Some(&path)).unwrap();
        let Token::File(file) = &token else { panic!() };
        let mut now = Instant::now();
        let mut next = |text: Option<&str>| {
            match text {
                Some(text) => fs::write(&path, text).unwrap(),
                None => drop(fs::remove_file(&path)),
            }
            now += PERIOD;
            file.header(now).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(next(None), "Bearer given");
        assert_eq!(next(Some("one")), "Bearer one");
        assert_eq!(next(Some("two")), "Bearer two");
        for bad in [Some(""), Some("a\nb"), None] {
            assert_eq!(next(bad), "Bearer two");
        }
        fs::write(&path, "three").unwrap();
        assert_eq!(
            file.header(now).unwrap(),
            "Bearer two",
            "it is looked at now and then"
        );
        token.refused();
        assert_eq!(file.header(now).unwrap(), "Bearer three");
    }
}
