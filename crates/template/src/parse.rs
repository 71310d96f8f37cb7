//! A template as a tree.

use crate::Fault;
use crate::functions;
use crate::lexer::{self, Part, Token, Word};

/// Parentheses and blocks inside each other.
const DEEPEST: usize = 100;

#[derive(Debug, Clone)]
pub(crate) enum Node {
    Text(String),
    Print(Pipe),
    If {
        condition: Pipe,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        over: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    With {
        value: Pipe,
        body: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Break,
    Continue,
}

#[derive(Debug, Clone)]
pub(crate) struct Pipe {
    pub(crate) at: usize,
    pub(crate) variables: Vec<String>,
    /// The variables are there already.
    pub(crate) assigns: bool,
    /// Each a function or a value, and its arguments.
    pub(crate) commands: Vec<Vec<Operand>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Operand {
    pub(crate) at: usize,
    pub(crate) kind: OperandKind,
}

#[derive(Debug, Clone)]
pub(crate) enum OperandKind {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Variable(String),
    Function(String),
    Pipe(Box<Pipe>),
    /// Fields of a value.
    Chain(Box<Operand>, Vec<String>),
}

/// How a block ended.
enum Ended {
    All,
    End,
    /// With what stands behind `else`.
    Else(Vec<Token>, usize),
}

struct Parser {
    parts: std::vec::IntoIter<Part>,
    depth: usize,
    loops: usize,
}

pub(crate) fn parse(text: &str) -> Result<Vec<Node>, Fault> {
    let mut parser = Parser {
        parts: lexer::parts(text)?.into_iter(),
        depth: 0,
        loops: 0,
    };
    let mut last = 0;
    let (nodes, ended) = parser.block(&mut last)?;
    match ended {
        Ended::All => Ok(nodes),
        Ended::End => Err(Fault::new(last, "end without if, range or with")),
        Ended::Else(_, at) => Err(Fault::new(at, "else without if, range or with")),
    }
}

impl Parser {
    /// Nodes up to an end; `last` is the place of the last action.
    fn block(&mut self, last: &mut usize) -> Result<(Vec<Node>, Ended), Fault> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Fault::new(*last, "too many blocks inside each other"));
        }
        let mut nodes = Vec::new();
        while let Some(part) = self.parts.next() {
            let (mut tokens, at) = match part {
                Part::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Part::Action { tokens, at } => (tokens, at),
            };
            *last = at;
            let keyword = match tokens.first().map(|token| &token.word) {
                Some(Word::Name(name)) => name.clone(),
                _ => String::new(),
            };
            let alone = |tokens: &[Token]| match tokens.get(1) {
                None => Ok(()),
                Some(more) => Err(Fault::new(more.at, format!("{keyword} stands alone"))),
            };
            match keyword.as_str() {
                "end" => {
                    alone(&tokens)?;
                    self.depth -= 1;
                    return Ok((nodes, Ended::End));
                }
                "else" => {
                    self.depth -= 1;
                    tokens.remove(0);
                    return Ok((nodes, Ended::Else(tokens, at)));
                }
                "if" | "range" | "with" => {
                    nodes.push(self.control(&keyword, &tokens[1..], at, last)?);
                }
                "break" | "continue" => {
                    alone(&tokens)?;
                    if self.loops == 0 {
                        return Err(Fault::new(at, format!("{keyword} outside of range")));
                    }
                    nodes.push(if keyword == "break" {
                        Node::Break
                    } else {
                        Node::Continue
                    });
                }
                "define" | "template" | "block" => {
                    return Err(Fault::new(
                        at,
                        format!("{keyword} is not possible: there is one template only"),
                    ));
                }
                _ => nodes.push(Node::Print(pipe(&tokens, at, 0)?)),
            }
        }
        self.depth -= 1;
        Ok((nodes, Ended::All))
    }

    fn control(
        &mut self,
        keyword: &str,
        tokens: &[Token],
        at: usize,
        last: &mut usize,
    ) -> Result<Node, Fault> {
        let head = pipe(tokens, at, 0)?;
        let looping = keyword == "range";
        self.loops += usize::from(looping);
        let (body, ended) = self.block(last)?;
        self.loops -= usize::from(looping);
        let missing = || {
            Fault::new(
                at,
                format!("{keyword} does not end: {{{{end}}}} is missing"),
            )
        };
        let otherwise = match ended {
            Ended::All => return Err(missing()),
            Ended::End => Vec::new(),
            Ended::Else(tokens, at) => match tokens.first().map(|token| &token.word) {
                // The end of the inner one is the end of both.
                Some(Word::Name(name)) if name == keyword && !looping => {
                    vec![self.control(keyword, &tokens[1..], at, last)?]
                }
                Some(_) => return Err(Fault::new(at, "else stands alone, or before if")),
                None => match self.block(last)? {
                    (nodes, Ended::End) => nodes,
                    (_, Ended::Else(_, at)) => return Err(Fault::new(at, "a second else")),
                    (_, Ended::All) => return Err(missing()),
                },
            },
        };
        Ok(match keyword {
            "if" => Node::If {
                condition: head,
                then: body,
                otherwise,
            },
            "range" => Node::Range {
                over: head,
                body,
                otherwise,
            },
            _ => Node::With {
                value: head,
                body,
                otherwise,
            },
        })
    }
}

/// A pipeline out of all of `tokens`.
fn pipe(tokens: &[Token], at: usize, depth: usize) -> Result<Pipe, Fault> {
    if depth > DEEPEST {
        return Err(Fault::new(at, "too many parentheses inside each other"));
    }
    let (variables, assigns, mut rest) = variables(tokens);
    let mut commands = vec![Vec::new()];
    while let Some((token, behind)) = rest.split_first() {
        rest = behind;
        let kind = match &token.word {
            Word::Pipe => {
                if commands.last().is_none_or(Vec::is_empty) {
                    return Err(Fault::new(token.at, "nothing stands before |"));
                }
                commands.push(Vec::new());
                continue;
            }
            Word::Open => {
                let length = closing(rest).ok_or_else(|| Fault::new(token.at, ") is missing"))?;
                let inner = pipe(&rest[..length], token.at, depth + 1)?;
                rest = &rest[length + 1..];
                OperandKind::Pipe(Box::new(inner))
            }
            Word::Close => return Err(Fault::new(token.at, "( is missing")),
            Word::Comma | Word::Declare | Word::Assign => {
                return Err(Fault::new(
                    token.at,
                    "expected a value or a function: variables stand first, as in $name := .Field",
                ));
            }
            Word::Dot => OperandKind::Dot,
            Word::Field(name) => {
                let dot = Operand {
                    at: token.at,
                    kind: OperandKind::Dot,
                };
                OperandKind::Chain(Box::new(dot), vec![name.clone()])
            }
            Word::Variable(name) => OperandKind::Variable(name.clone()),
            Word::Text(text) => OperandKind::Text(text.clone()),
            Word::Int(value) => OperandKind::Int(*value),
            Word::Float(value) => OperandKind::Float(*value),
            Word::Name(name) => match name.as_str() {
                "nil" => OperandKind::Nil,
                "true" => OperandKind::Bool(true),
                "false" => OperandKind::Bool(false),
                name if functions::NAMES.contains(&name) => OperandKind::Function(name.to_owned()),
                name => {
                    return Err(Fault::new(
                        token.at,
                        format!(
                            "there is no function {name}; the functions are {}",
                            functions::NAMES.join(", ")
                        ),
                    ));
                }
            },
        };
        let mut operand = Operand { at: token.at, kind };
        while let Some((
            Token {
                word: Word::Field(name),
                glued: true,
                ..
            },
            behind,
        )) = rest.split_first()
        {
            rest = behind;
            operand = match operand.kind {
                OperandKind::Chain(base, mut names) => {
                    names.push(name.clone());
                    Operand {
                        at: operand.at,
                        kind: OperandKind::Chain(base, names),
                    }
                }
                _ => Operand {
                    at: operand.at,
                    kind: OperandKind::Chain(Box::new(operand), vec![name.clone()]),
                },
            };
        }
        if let Some(command) = commands.last_mut() {
            command.push(operand);
        }
    }
    if commands.last().is_none_or(Vec::is_empty) {
        let at = tokens.last().map_or(at, |token| token.at);
        return Err(Fault::new(at, "a value is missing"));
    }
    Ok(Pipe {
        at,
        variables,
        assigns,
        commands,
    })
}

/// `$name :=`, `$name =` or `$index, $element :=` at the beginning, and what stands behind.
fn variables(tokens: &[Token]) -> (Vec<String>, bool, &[Token]) {
    let word = |at: usize| tokens.get(at).map(|token| &token.word);
    match (word(0), word(1), word(2), word(3)) {
        (Some(Word::Variable(name)), Some(Word::Declare | Word::Assign), ..) => (
            vec![name.clone()],
            word(1) == Some(&Word::Assign),
            &tokens[2..],
        ),
        (
            Some(Word::Variable(index)),
            Some(Word::Comma),
            Some(Word::Variable(element)),
            Some(Word::Declare | Word::Assign),
        ) => (
            vec![index.clone(), element.clone()],
            word(3) == Some(&Word::Assign),
            &tokens[4..],
        ),
        _ => (Vec::new(), false, tokens),
    }
}

/// Where the parenthesis closes that opened before `tokens`.
fn closing(tokens: &[Token]) -> Option<usize> {
    let mut open = 1;
    tokens.iter().position(|token| {
        match token.word {
            Word::Open => open += 1,
            Word::Close => open -= 1,
            _ => {}
        }
        open == 0
    })
}
