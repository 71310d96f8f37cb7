//! Whether the store is whole, and what to do where it is not.

use kiln_store::{Fault, Faulty, Verdict};
use kiln_worker::WorkerError;

use crate::{BuildError, Engine};

/// What a check found and did.
#[derive(Debug, Clone, Default)]
pub struct Checked {
    /// What was looked at, and what is wrong with it.
    pub verdict: Verdict,
    /// What was dropped, in words.
    pub dropped: Vec<String>,
}

impl Engine {
    /// Looks whether the store is whole: rows, folders, indexes and blobs against each other; with `deep` also the
    /// content of files. With `repair` what is damaged is dropped: it is built or fetched again when it is next needed.
    ///
    /// # Errors
    /// When the store cannot be read at all, or the worker fails.
    pub fn check(&self, deep: bool, repair: bool) -> Result<Checked, BuildError> {
        let mut checked = Checked {
            verdict: self.store.check(deep)?,
            dropped: Vec::new(),
        };
        if deep {
            for layer in checked.verdict.layers.clone() {
                let known = checked
                    .verdict
                    .faults
                    .iter()
                    .any(|fault| fault.of == Faulty::Layer(layer));
                if known {
                    continue;
                }
                let found = match self.worker.verify(layer, &[]) {
                    Err(WorkerError::Failed(failure)) => vec![failure.message],
                    other => other.map_err(|error| BuildError::from_worker(&error))?,
                };
                let fault = |text| Fault {
                    text: format!("layer {layer}: {text}"),
                    of: Faulty::Layer(layer),
                };
                checked.verdict.faults.extend(found.into_iter().map(fault));
            }
        }
        if repair {
            self.repair(&mut checked)?;
        }
        Ok(checked)
    }

    fn repair(&self, checked: &mut Checked) -> Result<(), BuildError> {
        for fault in &checked.verdict.faults {
            match fault.of {
                Faulty::Layer(layer) => {
                    if let Some(dropped) = self.store.drop_layer(layer)? {
                        let mut text =
                            format!("layer {layer} with {} cache records", dropped.records);
                        for name in dropped.names {
                            text = format!("{text}, {name}");
                        }
                        checked.dropped.push(text);
                    }
                }
                Faulty::Blob(digest) => {
                    self.store.drop_blob(digest)?;
                    checked.dropped.push(format!("blob {digest}"));
                }
                Faulty::Rows => self.store.drop_loose_rows()?,
                Faulty::Database => {}
            }
        }
        self.sweep()?;
        Ok(())
    }
}
