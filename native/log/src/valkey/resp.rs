//! RESP2, the protocol of Valkey and Redis: encodes commands and reads answers, with limits on the memory of an answer.

use std::io::{self, BufRead};

/// Memory limit for all answers of one call, in bytes. A server can make a call take 64 MiB at most: the rest is for the
/// answers with budgets of their own.
const MAX_CALL_BYTES: usize = 54 << 20;
/// Memory limit for the records among them. Later records of the call are skipped, and the next call reads them.
const MAX_CALL_RECORD_BYTES: usize = 32 << 20;
/// No journal writes records that are longer. Longer texts are skipped.
pub(super) const MAX_RECORD_BYTES: usize = 1 << 20;
/// Texts up to this length are kept even if there is no room for records: they may be keys and ids.
const SHORT_BYTES: usize = 1024;
/// An answer to XREAD has five levels.
const MAX_NESTING: usize = 8;
/// Length limit for statuses, numbers and errors.
const MAX_LINE_BYTES: usize = 64 << 10;
/// How many characters of an error are kept.
const MAX_ERROR_CHARS: usize = 1024;
/// The assumed cost of a value besides its text: itself, twice as it is in a growing vector, and an allocation.
const VALUE_BYTES: usize = 128;

/// An answer of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Nothing.
    Nil,
    /// A number.
    Int(i64),
    /// A status or a text.
    Text(Vec<u8>),
    /// A text that was skipped because it is longer than any record.
    TooLong,
    /// A text that was skipped because there was no room.
    NoRoom,
    /// An error, in printable characters.
    Error(String),
    /// Several answers.
    Array(Vec<Value>),
}

impl Value {
    /// The elements of an array, if it has `N` of them.
    pub(super) fn array<const N: usize>(self) -> Option<[Value; N]> {
        match self {
            Value::Array(values) => values.try_into().ok(),
            _ => None,
        }
    }

    /// The first word of an error: its kind.
    pub(super) fn error_code(&self) -> Option<&str> {
        match self {
            Value::Error(error) => error.split(' ').next(),
            _ => None,
        }
    }
}

/// Memory that answers may still take.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    bytes: usize,
    record_bytes: usize,
}

impl Budget {
    /// For answers without a record.
    pub(super) const SHORT: Self = Self {
        bytes: 128 << 10,
        record_bytes: 0,
    };
    /// For the slots of a cluster: some thousand ranges.
    pub(super) const SLOTS: Self = Self {
        bytes: 8 << 20,
        record_bytes: 0,
    };
    /// For one entry with the longest record.
    pub(super) const ENTRY: Self = Self {
        bytes: MAX_RECORD_BYTES + (256 << 10),
        record_bytes: MAX_RECORD_BYTES + SHORT_BYTES,
    };
    /// For all answers of a call.
    pub(super) const CALL: Self = Self {
        bytes: MAX_CALL_BYTES,
        record_bytes: MAX_CALL_RECORD_BYTES,
    };

    /// A call's budget, divided by the number of shares.
    pub(super) fn share(shares: usize) -> Self {
        Self {
            bytes: MAX_CALL_BYTES / shares,
            record_bytes: MAX_CALL_RECORD_BYTES / shares,
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Fault> {
        self.bytes = self.bytes.checked_sub(bytes).ok_or(Fault::TooMuch)?;
        Ok(())
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The connection failed.
    Io(io::Error),
    /// The bytes do not follow the protocol.
    Nonsense,
    /// The answers exceed the budget.
    TooMuch,
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The beginning of an answer.
enum Head {
    Value(Value),
    Text(usize),
    Array(usize),
}

/// Reads one answer. Nested answers take no stack, and a length that a server only announces takes no memory.
pub(super) fn read(source: &mut impl BufRead, budget: &mut Budget) -> Result<Value, Fault> {
    // Incomplete arrays, with the number of elements that they lack.
    let mut open: Vec<(usize, Vec<Value>)> = Vec::new();
    loop {
        budget.spend(VALUE_BYTES)?;
        let mut value = match head(source, budget)? {
            Head::Value(value) => value,
            Head::Text(length) => text(source, length, budget)?,
            Head::Array(0) => Value::Array(Vec::new()),
            Head::Array(_) if open.len() == MAX_NESTING => return Err(Fault::Nonsense),
            Head::Array(length) => {
                open.push((length, Vec::new()));
                continue;
            }
        };
        loop {
            let Some((missing, values)) = open.last_mut() else {
                return Ok(value);
            };
            values.push(value);
            *missing -= 1;
            if *missing > 0 {
                break;
            }
            value = Value::Array(open.pop().map(|(_, values)| values).unwrap_or_default());
        }
    }
}

fn head(source: &mut impl BufRead, budget: &mut Budget) -> Result<Head, Fault> {
    let line = line(source)?;
    let (kind, rest) = line.split_first().ok_or(Fault::Nonsense)?;
    Ok(match kind {
        b'+' => {
            budget.spend(rest.len())?;
            Head::Value(Value::Text(rest.to_vec()))
        }
        b'-' => {
            let mut error = printable(&String::from_utf8_lossy(rest), MAX_ERROR_CHARS);
            error.shrink_to_fit();
            budget.spend(error.len())?;
            Head::Value(Value::Error(error))
        }
        b':' => Head::Value(Value::Int(number(rest)?)),
        b'$' => length(rest)?.map_or(Head::Value(Value::Nil), Head::Text),
        b'*' => length(rest)?.map_or(Head::Value(Value::Nil), Head::Array),
        _ => return Err(Fault::Nonsense),
    })
}

/// A line without its end.
fn line(source: &mut impl BufRead) -> Result<Vec<u8>, Fault> {
    let mut line = Vec::new();
    loop {
        let available = fill(source)?;
        let end = available.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(available.len(), |end| end + 1);
        if line.len() + taken > MAX_LINE_BYTES {
            return Err(Fault::Nonsense);
        }
        line.extend_from_slice(&available[..taken]);
        source.consume(taken);
        if end.is_some() {
            return match line.strip_suffix(b"\r\n") {
                Some(line) => Ok(line.to_vec()),
                None => Err(Fault::Nonsense),
            };
        }
    }
}

/// Reads the bytes of a text, and the end of the line behind it.
fn text(source: &mut impl BufRead, length: usize, budget: &mut Budget) -> Result<Value, Fault> {
    let too_long = length > MAX_RECORD_BYTES;
    let no_room = length > SHORT_BYTES && length > budget.record_bytes;
    let mut text = Vec::new();
    if !too_long && !no_room {
        budget.spend(length)?;
        budget.record_bytes = budget.record_bytes.saturating_sub(length);
        text.reserve_exact(length);
    }
    let mut missing = length;
    while missing > 0 {
        let available = fill(source)?;
        let taken = available.len().min(missing);
        if !too_long && !no_room {
            text.extend_from_slice(&available[..taken]);
        }
        source.consume(taken);
        missing -= taken;
    }
    for expected in *b"\r\n" {
        if fill(source)?[0] != expected {
            return Err(Fault::Nonsense);
        }
        source.consume(1);
    }
    Ok(match (too_long, no_room) {
        (true, _) => Value::TooLong,
        (false, true) => Value::NoRoom,
        (false, false) => Value::Text(text),
    })
}

/// The next bytes, at least one.
fn fill(source: &mut impl BufRead) -> Result<&[u8], Fault> {
    let available = source.fill_buf()?;
    match available.is_empty() {
        true => Err(Fault::Io(io::ErrorKind::UnexpectedEof.into())),
        false => Ok(available),
    }
}

fn number(text: &[u8]) -> Result<i64, Fault> {
    let text = std::str::from_utf8(text).map_err(|_| Fault::Nonsense)?;
    text.parse().map_err(|_| Fault::Nonsense)
}

/// A length, or `None` for -1, which means no value.
fn length(text: &[u8]) -> Result<Option<usize>, Fault> {
    match number(text)? {
        -1 => Ok(None),
        length => usize::try_from(length)
            .map(Some)
            .map_err(|_| Fault::Nonsense),
    }
}

/// A server's text in one line of printable characters.
pub(super) fn printable(text: &str, max_chars: usize) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(printable).take(max_chars).collect()
}

/// A command as it is sent.
pub(super) fn encode(words: &[&[u8]]) -> Vec<u8> {
    let length = words.iter().map(|word| word.len() + 16).sum::<usize>() + 16;
    let mut encoded = Vec::with_capacity(length);
    encoded.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        encoded.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        encoded.extend_from_slice(word);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{BufReader, Read};

    fn parse(mut bytes: &[u8]) -> Result<Value, Fault> {
        read(&mut bytes, &mut Budget::CALL.clone())
    }

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    #[test]
    fn answers() {
        for (bytes, value) in [
            ("+OK\r\n", text("OK")),
            ("+\r\n", text("")),
            (":-7\r\n", Value::Int(-7)),
            ("$2\r\n\r\n\r\n", text("\r\n")),
            ("$0\r\n\r\n", text("")),
            ("$-1\r\n", Value::Nil),
            ("*-1\r\n", Value::Nil),
            ("*0\r\n", Value::Array(vec![])),
            ("-ERR a\tb\r\n", Value::Error("ERR a b".into())),
            (
                "*3\r\n*1\r\n*0\r\n$1\r\nx\r\n:1\r\n",
                Value::Array(vec![
                    Value::Array(vec![Value::Array(vec![])]),
                    text("x"),
                    Value::Int(1),
                ]),
            ),
        ] {
            assert_eq!(parse(bytes.as_bytes()).ok(), Some(value), "{bytes:?}");
        }
        for bytes in [
            "\r\n",
            "OK\r\n",
            "+OK\n",
            ":\r\n",
            ":x\r\n",
            "$-2\r\n",
            "*-2\r\n",
            "$1\r\nxyz",
            "$99999999999999999999\r\n",
            "%1\r\n",
        ] {
            let fault = parse(bytes.as_bytes());
            assert!(matches!(fault, Err(Fault::Nonsense)), "{bytes:?}");
        }
        for bytes in ["", "+O", "$3\r\nab", "$3\r\nabc", "*2\r\n:1\r\n"] {
            assert!(
                matches!(parse(bytes.as_bytes()), Err(Fault::Io(_))),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn arrays_nest_so_deep_and_no_deeper() {
        let nested = |depth| "*1\r\n".repeat(depth) + ":1\r\n";
        assert!(parse(nested(MAX_NESTING).as_bytes()).is_ok());
        for depth in [MAX_NESTING + 1, 1_000_000] {
            assert!(matches!(
                parse(nested(depth).as_bytes()),
                Err(Fault::Nonsense)
            ));
        }
    }

    #[test]
    fn what_is_promised_costs_nothing() {
        for head in [
            "*9223372036854775807\r\n",
            "$9223372036854775807\r\n",
            "$1048576\r\n",
        ] {
            assert!(matches!(parse(head.as_bytes()), Err(Fault::Io(_))));
        }
    }

    #[test]
    fn answers_without_end_have_an_end() {
        for endless in [&b"*9\r\n"[..], b":1\r\n", b"$3\r\nabc\r\n", b"x", b"+"] {
            let start: &[u8] = b"*9223372036854775807\r\n";
            let mut source = BufReader::new(start.chain(Endless(endless, 0)));
            let fault = read(&mut source, &mut Budget::CALL.clone());
            assert!(
                matches!(fault, Err(Fault::TooMuch | Fault::Nonsense)),
                "{endless:?}: {fault:?}"
            );
        }
    }

    /// The same bytes again and again.
    struct Endless(&'static [u8], usize);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            for byte in buffer.iter_mut() {
                *byte = self.0[self.1 % self.0.len()];
                self.1 += 1;
            }
            Ok(buffer.len())
        }
    }

    #[test]
    fn long_texts_are_passed_over() {
        let bulk = |length: usize| {
            let mut bulk = format!("${length}\r\n").into_bytes();
            bulk.resize(bulk.len() + length, b'x');
            bulk.extend_from_slice(b"\r\n");
            bulk
        };
        let longest = parse(&bulk(MAX_RECORD_BYTES)).unwrap();
        assert_eq!(longest, Value::Text(vec![b'x'; MAX_RECORD_BYTES]));
        for length in [MAX_RECORD_BYTES + 1, 2 * MAX_CALL_BYTES] {
            assert_eq!(parse(&bulk(length)).unwrap(), Value::TooLong);
        }
        // Skipped texts are marked as such, and short ones are kept.
        let mut many = b"*41\r\n".to_vec();
        for _ in 0..40 {
            many.extend(bulk(MAX_RECORD_BYTES));
        }
        many.extend(bulk(3));
        let Value::Array(values) = parse(&many).unwrap() else {
            panic!();
        };
        let kept = |value: &Value| matches!(value, Value::Text(text) if text.len() > 3);
        assert_eq!(values.iter().filter(|value| kept(value)).count(), 32);
        assert_eq!(values[32..40], vec![Value::NoRoom; 8]);
        assert_eq!(values[40], text("xxx"));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<i64>().prop_map(Value::Int),
            prop::collection::vec(any::<u8>(), 0..50).prop_map(Value::Text),
            "[a-zA-Z ]{0,20}".prop_map(Value::Error),
        ];
        leaf.prop_recursive(5, 50, 5, |value| {
            prop::collection::vec(value, 0..5).prop_map(Value::Array)
        })
    }

    fn encoded(value: &Value) -> Vec<u8> {
        match value {
            Value::Nil => b"$-1\r\n".to_vec(),
            Value::Int(number) => format!(":{number}\r\n").into_bytes(),
            Value::Text(text) => {
                [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
            }
            Value::Error(error) => format!("-{error}\r\n").into_bytes(),
            Value::Array(values) => values.iter().fold(
                format!("*{}\r\n", values.len()).into_bytes(),
                |mut all, value| {
                    all.extend(encoded(value));
                    all
                },
            ),
            Value::TooLong | Value::NoRoom => unreachable!(),
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_back(value in any_value(), chunk in 1usize..20) {
            let bytes = encoded(&value);
            let mut source = BufReader::with_capacity(chunk, &bytes[..]);
            prop_assert_eq!(read(&mut source, &mut Budget::CALL.clone()).unwrap(), value);
        }

        #[test]
        fn no_bytes_panic_or_exceed_the_budget(
            bytes in prop::collection::vec(prop_oneof![
                prop::sample::select(b"*$:+-0123456789\r\n".to_vec()),
                any::<u8>(),
            ], 0..300),
            bytes_left in 0usize..2000,
        ) {
            let mut budget = Budget { bytes: bytes_left, record_bytes: bytes_left / 2 };
            if let Ok(value) = read(&mut &bytes[..], &mut budget) {
                fn cost(value: &Value) -> usize {
                    std::mem::size_of::<Value>() + match value {
                        Value::Text(text) => text.len(),
                        Value::Error(error) => error.len(),
                        Value::Array(values) => values.iter().map(cost).sum(),
                        _ => 0,
                    }
                }
                prop_assert!(cost(&value) <= bytes_left);
            }
        }

        #[test]
        fn a_damaged_answer_does_not_panic(value in any_value(), at in any::<prop::sample::Index>(), byte: u8) {
            let mut bytes = encoded(&value);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = parse(&bytes);
            let _ = parse(&bytes[..at]);
        }

        #[test]
        fn commands_are_arrays_of_texts(words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..5)) {
            let encoded = encode(&words.iter().map(|word| &word[..]).collect::<Vec<_>>());
            let texts = words.into_iter().map(Value::Text).collect();
            prop_assert_eq!(parse(&encoded).unwrap(), Value::Array(texts));
        }
    }
}
