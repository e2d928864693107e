//! Kubernetes, as far as this node is concerned. Whatever it says comes as events; nothing waits for it.

mod annotations;
mod announcer;
mod api;
mod features;

pub(crate) use annotations::{Annotations, annotating};
pub use announcer::Notes;
pub(crate) use announcer::{Own, announcing};
pub(crate) use api::{Door, Served, watch};
pub(crate) use features::keep as keep_features;
pub use node::cluster::{
    About, BranchWish, EniConfig, EniConfigName, EniConfigNews, Features, Myself, NameKeys, News, NodeObject,
    Note, PodIp, PodNews, PodObject, PodRef, WarmOverrides, is_object_name,
};
