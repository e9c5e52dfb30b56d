//! Output ports.

use crate::kinds::{KindType, Table};
use smelt_schemas::{Kind, OutputPort};
use std::fmt;
use std::marker::PhantomData;

/// The output ports of a stage; `outputs!` writes it.
pub trait Outputs: Sized + Send + Sync {
    fn specs() -> Vec<OutputPort>;
    fn bind() -> Self;
}

/// A named output of one kind. Rows and files go to it through a `Unit`.
pub struct Port<K> {
    pub(crate) name: &'static str,
    kind: PhantomData<fn() -> K>,
}

impl<K> fmt::Debug for Port<K> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Port({})", self.name)
    }
}

impl<K: KindType> Port<K> {
    pub fn named(name: &'static str) -> Self {
        Self { name, kind: PhantomData }
    }
    pub fn spec(name: &str) -> OutputPort {
        OutputPort { name: name.into(), kind: K::kind() }
    }
}

impl<K: Table> Port<K> {
    pub fn kind(&self) -> Kind {
        K::kind()
    }
}
