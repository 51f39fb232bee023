//! `nft list ruleset`, block by block.

use super::ours::type_name;
use super::token::{Token, Tokens};
use super::{Base, Reading, RuleText, SetHead, Sink};
use crate::ruleset::schema::{PRIORITY_DSTNAT, PRIORITY_SRCNAT};

/// Why a block could not be read, and where.
struct Stop {
    line: usize,
    why: String,
}

type Result<T> = std::result::Result<T, Stop>;

fn stop<T>(line: usize, why: impl Into<String>) -> Result<T> {
    let why = why.into();
    Err(Stop { line, why })
}

/// Reads all tables. What stands outside of one is noted, and what a broken one leaves open ends
/// the reading.
pub(super) fn read(text: &str, reading: &mut Reading<'_>) {
    let mut tokens = Tokens::new(text);
    loop {
        let line = tokens.line();
        match tokens.next() {
            None => return,
            Some(Token::Newline | Token::Semicolon) => {}
            Some(Token::Word("table")) => {
                if let Err(Stop { line, why }) = table(&mut tokens, reading) {
                    return reading.unread(line, why);
                }
            }
            Some(token) => {
                let start = token.text().unwrap_or("a sign");
                let rest = tokens.skip_line();
                reading.unread(
                    line,
                    format!(
                        "no table starts with `{}`",
                        short(&format!("{start} {rest}"))
                    ),
                );
            }
        }
    }
}

/// The start of a text, for messages.
pub(super) fn short(text: &str) -> String {
    const MAX: usize = 120;
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.trim().to_owned(),
    }
}

fn word<'a>(tokens: &mut Tokens<'a>, what: &str) -> Result<&'a str> {
    let line = tokens.line();
    match tokens.next().and_then(Token::text) {
        Some(word) => Ok(word),
        None => stop(line, format!("{what} is missing")),
    }
}

fn open(tokens: &mut Tokens<'_>, what: &str) -> Result<()> {
    let line = tokens.line();
    match tokens.next() {
        Some(Token::Open) => Ok(()),
        _ => stop(line, format!("{what} does not go on with {{")),
    }
}

/// `table ip nftproxy { … }`, from the family on.
fn table(tokens: &mut Tokens<'_>, reading: &mut Reading<'_>) -> Result<()> {
    let start = tokens.line();
    let family = word(tokens, "the family of a table")?;
    let name = word(tokens, "the name of a table")?;
    let what = format!("table {family} {name}");
    open(tokens, &what)?;
    let sink = reading.table(family, name);
    loop {
        let line = tokens.line();
        match tokens.next() {
            None => return stop(start, format!("{what} does not end")),
            Some(Token::Newline | Token::Semicolon) => {}
            Some(Token::Close) => return Ok(()),
            Some(Token::Word("comment")) => {
                word(tokens, "a comment")?;
            }
            Some(Token::Word("flags")) => {
                for flag in list(tokens) {
                    sink.table_flag(flag);
                }
            }
            Some(Token::Word(kind @ ("set" | "map"))) => set(tokens, kind, sink)?,
            Some(Token::Word("chain")) => chain(tokens, sink)?,
            // Flowtables, counters, `ct helper`, and what else there may be.
            Some(Token::Word(kind)) => {
                let mut words = vec![kind];
                loop {
                    match tokens.next() {
                        Some(Token::Open) => break skip_block(tokens, line)?,
                        Some(token) => match token.text() {
                            Some(word) => words.push(word),
                            None => {
                                return stop(
                                    line,
                                    format!("`{}` in {what} cannot be read", words.join(" ")),
                                );
                            }
                        },
                        None => return stop(start, format!("{what} does not end")),
                    }
                }
                sink.other(words.join(" "));
            }
            Some(_) => return stop(line, format!("a sign in {what} that belongs to nothing")),
        }
    }
}

/// The words up to the end of a line, without commas.
fn list<'a>(tokens: &mut Tokens<'a>) -> Vec<&'a str> {
    let mut words = Vec::new();
    for token in tokens {
        match token {
            Token::Word(word) => words.push(word),
            Token::Comma => {}
            _ => break,
        }
    }
    words
}

fn skip_block(tokens: &mut Tokens<'_>, line: usize) -> Result<()> {
    let mut depth = 1;
    for token in tokens {
        match token {
            Token::Open => depth += 1,
            Token::Close => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(());
        }
    }
    stop(line, "a block does not end")
}

/// `set cluster-ips { … }`, from the name on.
fn set(tokens: &mut Tokens<'_>, kind: &str, sink: &mut dyn Sink) -> Result<()> {
    let start = tokens.line();
    let mut head = SetHead {
        kind: kind.into(),
        name: word(tokens, "the name of a set")?.into(),
        ..SetHead::default()
    };
    let what = format!("{kind} {}", head.name);
    open(tokens, &what)?;
    let mut is_announced = false;
    loop {
        match tokens.next() {
            None => return stop(start, format!("{what} does not end")),
            Some(Token::Close) => break,
            Some(Token::Word("type" | "typeof")) => {
                // Either may go on with the type of the data.
                let words = list_with_commas(tokens);
                let mut sides = words.split(|word| word == ":");
                let names = |side: Option<&[String]>| match side {
                    Some(side) => side
                        .split(|word| word == ".")
                        .map(|words| type_name(&words.join(" ")).to_owned())
                        .collect(),
                    None => Vec::new(),
                };
                head.key = names(sides.next());
                head.data = names(sides.next());
            }
            Some(Token::Word("flags")) => {
                head.flags = list(tokens).into_iter().map(String::from).collect()
            }
            Some(Token::Word("size")) => head.size = word(tokens, "a size")?.parse().ok(),
            Some(Token::Word("elements")) => {
                let line = tokens.line();
                if tokens.next() != Some(Token::Word("=")) {
                    return stop(line, format!("elements of {what} that do not go on with ="));
                }
                open(tokens, &format!("elements of {what}"))?;
                sink.set(&head);
                is_announced = true;
                elements(tokens, &head.name, sink)?;
            }
            Some(Token::Word("counter")) => head.counts = true,
            Some(Token::Word("comment")) => {
                word(tokens, "a comment")?;
            }
            Some(Token::Word("timeout")) => head.has_timeout = true,
            // `auto-merge` and the like: ours have none, and nothing is lost by them.
            Some(_) => {}
        }
    }
    if !is_announced {
        sink.set(&head);
    }
    Ok(())
}

/// The words up to the end of a line; those that hold commas, as raw payload does, are put together
/// again.
fn list_with_commas(tokens: &mut Tokens<'_>) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_joined = false;
    for token in tokens {
        match (token, words.last_mut()) {
            (Token::Comma, Some(last)) => {
                last.push(',');
                is_joined = true;
            }
            (Token::Word(word), Some(last)) if is_joined => {
                last.push_str(word);
                is_joined = false;
            }
            (Token::Word(word), _) => words.push(word.into()),
            _ => break,
        }
    }
    words
}

/// `{ a, b : c }`, from after the bracket.
fn elements(tokens: &mut Tokens<'_>, set: &str, sink: &mut dyn Sink) -> Result<()> {
    let start = tokens.line();
    let mut words = Vec::new();
    let mut depth = 0;
    while let Some(token) = tokens.next_on_any_line() {
        match token {
            Token::Comma | Token::Close if depth == 0 => {
                if !words.is_empty() {
                    sink.element(set, &words);
                    words.clear();
                }
                if token == Token::Close {
                    return Ok(());
                }
            }
            token => {
                match token {
                    Token::Open => depth += 1,
                    Token::Close => depth -= 1,
                    _ => {}
                }
                words.push(token);
            }
        }
    }
    stop(start, format!("the elements of {set} do not end"))
}

/// `chain services { … }`, from the name on.
fn chain(tokens: &mut Tokens<'_>, sink: &mut dyn Sink) -> Result<()> {
    let start = tokens.line();
    let name = word(tokens, "the name of a chain")?;
    let what = format!("chain {name}");
    open(tokens, &what)?;
    let mut base = None;
    let mut is_announced = false;
    loop {
        let (line, offset) = (tokens.line(), tokens.offset());
        match tokens.next() {
            None => return stop(start, format!("{what} does not end")),
            Some(Token::Newline | Token::Semicolon) => {}
            Some(Token::Close) => break,
            Some(Token::Word("type")) if !is_announced => base = Some(hook(tokens, &what, line)?),
            Some(Token::Word("comment")) if !is_announced => {
                word(tokens, "a comment")?;
            }
            Some(first) => {
                if !is_announced {
                    sink.chain(name, base.take());
                    is_announced = true;
                }
                let mut words = vec![first];
                rule(tokens, &mut words, &what)?;
                let raw = tokens.since(offset);
                // The end of the chain on the line of its last rule belongs to the chain.
                let ends_chain = words.last() == Some(&Token::Close) && depth(&words) < 0;
                let raw = if ends_chain {
                    words.pop();
                    raw.trim_end_matches('}').trim_end()
                } else {
                    raw
                };
                sink.rule(
                    name,
                    &RuleText {
                        words: &words,
                        raw,
                        line,
                    },
                );
                if ends_chain {
                    break;
                }
            }
        }
    }
    if !is_announced {
        sink.chain(name, base);
    }
    Ok(())
}

fn depth(words: &[Token<'_>]) -> i32 {
    words
        .iter()
        .map(|word| match word {
            Token::Open => 1,
            Token::Close => -1,
            _ => 0,
        })
        .sum()
}

/// The rest of a rule: to the end of its line, or of the line on which its last bracket closes.
fn rule<'a>(tokens: &mut Tokens<'a>, words: &mut Vec<Token<'a>>, what: &str) -> Result<()> {
    let line = tokens.line();
    let mut depth = i32::from(words.last() == Some(&Token::Open));
    for token in tokens {
        match token {
            Token::Newline if depth == 0 => return Ok(()),
            Token::Newline => continue,
            Token::Open => depth += 1,
            Token::Close => depth -= 1,
            _ => {}
        }
        words.push(token);
        if depth < 0 {
            return Ok(());
        }
    }
    stop(line, format!("{what} does not end"))
}

/// `type nat hook prerouting priority dstnat - 10; policy accept;`, from after the first word.
fn hook(tokens: &mut Tokens<'_>, what: &str, line: usize) -> Result<Base> {
    let mut base = Base {
        chain_type: word(tokens, "the type of a chain")?.into(),
        hook: String::new(),
        priority: 0,
        policy: "accept".into(),
    };
    let mut priority = None;
    let mut pending = tokens.next();
    while let Some(token) = pending.take().or_else(|| tokens.next()) {
        match token {
            Token::Newline => break,
            Token::Word("hook") => base.hook = word(tokens, "a hook")?.into(),
            Token::Word("policy") => base.policy = word(tokens, "a policy")?.into(),
            Token::Word("priority") => {
                let mut words = Vec::new();
                for token in tokens.by_ref() {
                    match token {
                        Token::Word(word) => words.push(word),
                        other => {
                            pending = Some(other);
                            break;
                        }
                    }
                }
                priority = self::priority(&words);
            }
            // The devices of a chain at `ingress`.
            _ => {}
        }
    }
    match priority {
        Some(priority) => Ok(Base { priority, ..base }),
        None => stop(line, format!("{what} has a priority that cannot be read")),
    }
}

/// A priority as a number, a name, or a name and a distance.
fn priority(words: &[&str]) -> Option<i32> {
    let name = |name| {
        Some(match name {
            "raw" => -300,
            "mangle" => -150,
            "dstnat" => PRIORITY_DSTNAT,
            "filter" => 0,
            "security" => 50,
            "srcnat" => PRIORITY_SRCNAT,
            // In the family `bridge`.
            "out" => 100,
            _ => return None,
        })
    };
    match words {
        [one] => one.parse().ok().or_else(|| name(one)),
        [start, "+", distance] => name(start)?.checked_add(distance.parse().ok()?),
        [start, "-", distance] => name(start)?.checked_sub(distance.parse().ok()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
