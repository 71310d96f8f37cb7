//! Kiln as its users meet it: the real binary, real images, real files.

mod bad_input;
mod cache_mounts;
mod cached;
mod conformance;
mod containers;
mod contexts;
mod debugging;
mod docker;
mod escapes;
mod escapes_files;
mod examples;
mod git_contexts;
mod host_ca;
mod images;
mod interrupted;
mod layouts;
mod limits;
mod outputs;
mod overlapping;
mod projects;
mod registry;
mod registry_errors;
mod settings_agree;
mod sources;
mod times;
mod where_it_runs;
