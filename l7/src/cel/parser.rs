//! From tokens to a tree. Precedence is CEL's; nesting and size are bounded.

use super::lexer::{Placed, Token, tokens};
use super::{FilterError, NESTING_MAX, NODES_MAX};

/// A part of the tree, with the character at which it begins.
#[derive(Debug, PartialEq)]
pub(super) struct Node {
    pub(super) at: usize,
    pub(super) kind: NodeKind,
}

#[derive(Debug, PartialEq)]
pub(super) enum NodeKind {
    Boolean(bool),
    Integer(i64),
    Double(f64),
    Text(String),
    Name(String),
    Select(Box<Node>, String),
    Index(Box<Node>, Box<Node>),
    /// `receiver.function(arguments)`, or without a receiver.
    Call {
        function: String,
        receiver: Option<Box<Node>>,
        arguments: Vec<Node>,
    },
    List(Vec<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    Binary(&'static str, Box<Node>, Box<Node>),
    Choose(Box<[Node; 3]>),
}

pub(super) fn parse(text: &str) -> Result<Node, FilterError> {
    let end = text.chars().count() + 1;
    let mut parser = Parser { tokens: tokens(text)?.into_iter().peekable(), end, nodes: 0, depth: 0 };
    let root = parser.expression()?;
    match parser.tokens.next() {
        None => Ok(root),
        Some((token, at)) => Err(FilterError { at, what: format!("{} is not expected here", shown(&token)) }),
    }
}

/// Operators from the weakest to the strongest.
const LEVELS: [&[&str]; 5] =
    [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">", "in"], &["+", "-"], &["*", "/", "%"]];

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Placed>>,
    end: usize,
    nodes: usize,
    depth: usize,
}

impl Parser {
    fn node(&mut self, at: usize, kind: NodeKind) -> Result<Node, FilterError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(FilterError { at, what: format!("there are more than {NODES_MAX} parts") });
        }
        Ok(Node { at, kind })
    }

    fn at(&mut self) -> usize {
        self.tokens.peek().map_or(self.end, |(_, at)| *at)
    }

    /// Takes the token if it is this sign.
    fn takes(&mut self, sign: &'static str) -> bool {
        self.tokens.next_if(|(token, _)| *token == Token::Sign(sign)).is_some()
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), FilterError> {
        if self.takes(sign) {
            return Ok(());
        }
        let at = self.at();
        let found = self.tokens.peek().map_or_else(|| "the end".to_owned(), |(token, _)| shown(token));
        Err(FilterError { at, what: format!("{sign:?} is expected and {found} found") })
    }

    /// The only way down, so the only place that counts.
    fn expression(&mut self) -> Result<Node, FilterError> {
        self.depth += 1;
        if self.depth > NESTING_MAX {
            let what = format!("parts are nested deeper than {NESTING_MAX}");
            return Err(FilterError { at: self.at(), what });
        }
        let condition = self.level(&LEVELS)?;
        let whole = if self.takes("?") {
            let at = condition.at;
            let yes = self.expression()?;
            self.expect(":")?;
            let no = self.expression()?;
            self.node(at, NodeKind::Choose(Box::new([condition, yes, no])))
        } else {
            Ok(condition)
        };
        self.depth -= 1;
        whole
    }

    /// Operators of one strength, from left to right.
    fn level(&mut self, levels: &[&[&'static str]]) -> Result<Node, FilterError> {
        let Some((signs, stronger)) = levels.split_first() else { return self.unary() };
        let mut left = self.level(stronger)?;
        while let Some(sign) = self.operator(signs) {
            let right = self.level(stronger)?;
            left = self.node(left.at, NodeKind::Binary(sign, Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn operator(&mut self, signs: &[&'static str]) -> Option<&'static str> {
        let (token, _) = self.tokens.peek()?;
        let found = signs.iter().copied().find(|sign| match token {
            Token::Sign(other) => other == sign,
            Token::Name(name) => name == sign,
            _ => false,
        })?;
        self.tokens.next();
        Some(found)
    }

    fn unary(&mut self) -> Result<Node, FilterError> {
        let at = self.at();
        let mut signs = Vec::new();
        while let Some(sign) = self.operator(&["!", "-"]) {
            signs.push(sign);
        }
        let mut node = self.member()?;
        for sign in signs.into_iter().rev() {
            let inner = Box::new(node);
            node = self.node(at, if sign == "!" { NodeKind::Not(inner) } else { NodeKind::Negate(inner) })?;
        }
        Ok(node)
    }

    fn member(&mut self) -> Result<Node, FilterError> {
        let mut node = self.primary()?;
        loop {
            let at = node.at;
            if self.takes(".") {
                let name = self.name()?;
                node = if self.takes("(") {
                    let arguments = self.list(")")?;
                    let receiver = Some(Box::new(node));
                    self.node(at, NodeKind::Call { function: name, receiver, arguments })?
                } else {
                    self.node(at, NodeKind::Select(Box::new(node), name))?
                };
            } else if self.takes("[") {
                let index = self.expression()?;
                self.expect("]")?;
                node = self.node(at, NodeKind::Index(Box::new(node), Box::new(index)))?;
            } else {
                return Ok(node);
            }
        }
    }

    fn name(&mut self) -> Result<String, FilterError> {
        let at = self.at();
        match self.tokens.next() {
            Some((Token::Name(name), _)) => Ok(name),
            _ => Err(FilterError { at, what: "a name is expected after the dot".to_owned() }),
        }
    }

    /// Expressions between commas, and what closes them.
    fn list(&mut self, close: &'static str) -> Result<Vec<Node>, FilterError> {
        let mut items = Vec::new();
        while !self.takes(close) {
            if !items.is_empty() {
                self.expect(",")?;
            }
            items.push(self.expression()?);
        }
        Ok(items)
    }

    fn primary(&mut self) -> Result<Node, FilterError> {
        let at = self.at();
        let Some((token, at)) = self.tokens.next() else {
            return Err(FilterError { at, what: "the expression ends too early".to_owned() });
        };
        let kind = match token {
            Token::Integer(number) => NodeKind::Integer(number),
            Token::Double(number) => NodeKind::Double(number),
            Token::Text(text) => NodeKind::Text(text),
            Token::Name(name) if name == "true" || name == "false" => NodeKind::Boolean(name == "true"),
            Token::Name(function) if self.takes("(") => {
                NodeKind::Call { function, receiver: None, arguments: self.list(")")? }
            }
            Token::Name(name) => NodeKind::Name(name),
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Sign("[") => NodeKind::List(self.list("]")?),
            Token::Sign(sign) => {
                return Err(FilterError { at, what: format!("{sign:?} is not expected here") });
            }
        };
        self.node(at, kind)
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Name(name) => format!("{name:?}"),
        Token::Integer(number) => number.to_string(),
        Token::Double(number) => number.to_string(),
        Token::Text(text) => format!("{text:?}"),
        Token::Sign(sign) => format!("{sign:?}"),
    }
}
