//! Direct Preference Optimization as an engine.
