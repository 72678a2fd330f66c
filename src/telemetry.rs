//! Every metric and the logging setup.
