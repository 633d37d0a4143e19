//! The program that runs on every tap's ingress hook.

#![no_std]
#![no_main]
