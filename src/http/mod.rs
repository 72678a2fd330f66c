//! Routes, handlers, OpenAI wire types, errors, authentication, CORS.
