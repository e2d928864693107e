//! VPC lab.
