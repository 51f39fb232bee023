//! A path with its query.

use std::fmt::Write;

/// A request's target.
pub(super) struct Query {
    text: String,
    has_parameters: bool,
}

impl Query {
    pub(super) fn new(path: &str) -> Self {
        Self {
            text: path.to_owned(),
            has_parameters: false,
        }
    }

    /// Adds a parameter, unless its value is empty.
    pub(super) fn add(&mut self, name: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        let separator = if self.has_parameters { '&' } else { '?' };
        self.has_parameters = true;
        self.text.push(separator);
        self.text.push_str(name);
        self.text.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                self.text.push(char::from(byte));
            } else {
                write!(self.text, "%{byte:02X}").expect("a string takes all that is written");
            }
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped_and_empty_ones_left_out() {
        let mut query = Query::new("/a");
        query.add("labelSelector", "!b/c");
        query.add("resourceVersion", "");
        query.add("fieldSelector", "x!=y z");
        assert_eq!(
            query.as_str(),
            "/a?labelSelector=%21b%2Fc&fieldSelector=x%21%3Dy%20z"
        );
    }
}
