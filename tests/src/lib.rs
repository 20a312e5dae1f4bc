//! Test harness of the project.
