//! Credentials from a program, by the `credential_process` contract of the AWS SDKs.
