//! The words of a listing, each with its line.

/// A word, or a sign that stands for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Word(&'a str),
    /// What stands between quotes.
    Quoted(&'a str),
    Open,
    Close,
    Semicolon,
    Comma,
    Newline,
}

impl<'a> Token<'a> {
    /// The text of a word, quoted or not.
    pub(super) fn text(self) -> Option<&'a str> {
        match self {
            Self::Word(text) | Self::Quoted(text) => Some(text),
            _ => None,
        }
    }
}

/// Reads tokens one after the other. Comments, from `#` to the end of the line, are left out.
#[derive(Debug, Clone)]
pub(super) struct Tokens<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

impl<'a> Tokens<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            line: 1,
        }
    }

    /// The line of what comes next, from 1.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The offset of what comes next, in bytes.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// The text from an offset to what comes next.
    pub(super) fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default().trim()
    }

    /// The rest of the line.
    pub(super) fn skip_line(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        let end = rest.find('\n').unwrap_or(rest.len());
        self.at += end;
        rest[..end].trim()
    }

    /// The next token that is not the end of a line.
    pub(super) fn next_on_any_line(&mut self) -> Option<Token<'a>> {
        self.find(|token| *token != Token::Newline)
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let bytes = self.text.as_bytes();
        while let Some(byte) = bytes.get(self.at) {
            match byte {
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'#' => {
                    self.skip_line();
                }
                _ => break,
            }
        }
        let start = self.at;
        let sign = match bytes.get(start)? {
            b'\n' => {
                self.line += 1;
                Token::Newline
            }
            b'{' => Token::Open,
            b'}' => Token::Close,
            b';' => Token::Semicolon,
            b',' => Token::Comma,
            b'"' => {
                let rest = &self.text[start + 1..];
                // A quote that does not end ends with its line.
                let end = rest.find(['"', '\n']).unwrap_or(rest.len());
                let is_closed = rest.as_bytes().get(end) == Some(&b'"');
                self.at = start + 1 + end + usize::from(is_closed);
                return Some(Token::Quoted(&rest[..end]));
            }
            _ => {
                let is_end = |byte: &u8| b" \t\r\n{};,\"".contains(byte);
                let len = bytes[start..].iter().position(is_end);
                self.at = len.map_or(bytes.len(), |len| start + len);
                return Some(Token::Word(&self.text[start..self.at]));
            }
        };
        self.at += 1;
        Some(sign)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_signs_and_quotes() {
        let text = "set s { # handle 1\n\telements = { fd00::1 comment \"a{b, c\" : goto x,\n";
        let mut tokens = Tokens::new(text);
        let all: Vec<_> = tokens.by_ref().collect();
        use Token::*;
        assert_eq!(
            all,
            [
                Word("set"),
                Word("s"),
                Open,
                Newline,
                Word("elements"),
                Word("="),
                Open,
                Word("fd00::1"),
                Word("comment"),
                Quoted("a{b, c"),
                Word(":"),
                Word("goto"),
                Word("x"),
                Comma,
                Newline
            ]
        );
        assert_eq!(tokens.line(), 3);
    }

    #[test]
    fn quotes_that_do_not_end_and_odd_bytes_do_no_harm() {
        let all: Vec<_> = Tokens::new("\"ä\nb ü\"").collect();
        assert_eq!(
            all,
            [
                Token::Quoted("ä"),
                Token::Newline,
                Token::Word("b"),
                Token::Word("ü"),
                Token::Quoted("")
            ]
        );
    }
}
