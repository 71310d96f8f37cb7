//! Arguments that are put into the grammar only when their command is called.
//!
//! All of docker's options under all names of each command are some thousand. A program that made them at each start would
//! need longer for that than for a build that changes nothing.

use std::cell::Cell;
use std::ops::Deref;

use clap::builder::Resettable;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Id};

use crate::command_line::voiced;
use crate::settings::Defaults;

/// The arguments of a command, as the grammar's types name them.
#[derive(Debug)]
pub(crate) struct Later<T>(Box<T>);

impl<T> Later<T> {
    pub(crate) fn into_inner(self) -> T {
        *self.0
    }

    /// These arguments as those of another command.
    pub(crate) fn map<U>(self, to: impl FnOnce(T) -> U) -> Later<U> {
        Later::from(to(*self.0))
    }
}

impl<T> From<T> for Later<T> {
    fn from(args: T) -> Self {
        Self(Box::new(args))
    }
}

impl<T> Deref for Later<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// What all grammars are made with.
#[derive(Clone, Copy)]
pub(crate) struct Making {
    /// What configuration files say.
    pub(crate) defaults: &'static Defaults,
    /// Whether people read it.
    pub(crate) is_read: bool,
}

thread_local! {
    /// Here since a command that is filled later is told nothing but itself.
    static MAKING: Cell<Option<Making>> = const { Cell::new(None) };
}

/// Tells how the arguments of commands are made from now on.
pub(crate) fn set(making: Making) {
    MAKING.set(Some(making));
}

/// The command with its arguments.
fn filled<T: Args>(command: Command) -> Command {
    // That of the command, which the type's own would replace.
    let about = command.get_about().cloned();
    let mut command = T::augment_args(command).about(Resettable::from(about));
    let Some(Making { defaults, is_read }) = MAKING.get() else {
        return command;
    };
    if command.get_name() == "build" {
        for (name, value) in &defaults.build {
            command = command.mut_arg(*name, |arg| arg.default_value(value.as_str()));
        }
    }
    if is_read { voiced(command) } else { command }
}

impl<T: Args> Args for Later<T> {
    fn group_id() -> Option<Id> {
        T::group_id()
    }

    fn augment_args(command: Command) -> Command {
        command.defer(filled::<T>)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: FromArgMatches> FromArgMatches for Later<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Self::from)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches_mut(matches).map(Self::from)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}
