//! Kiln as its users meet it: the real binary, real images, real files.

mod bad_input;
mod cache_mounts;
mod cached;
mod checks;
mod conformance;
mod contexts;
mod docker;
mod examples;
mod host_ca;
mod images;
mod interrupted;
mod outputs;
mod overlapping;
mod projects;
mod registry;
mod registry_errors;
mod settings_agree;
mod sources;
mod where_it_runs;
