//! One TCP/IP stack per interface: packets in, streams to HTTP, packets out.
