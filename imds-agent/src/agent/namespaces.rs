//! Network namespaces besides the agent's own: those that come into sight are gone to, watched and served, and let go when they go.
//!
//! As long as the agent has hold of a namespace the kernel keeps it, and its number. So what is out of sight is let go at once. What
//! hangs on a tap there stays on it while the tap lives, and the address is dark to its guest: somebody may have taken the name away
//! from a machine that runs.

mod handled;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    io,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use imds_ebpf::abi::{NamespaceNumber, TapIndex};
use tokio::{
    runtime,
    sync::{mpsc, oneshot, watch},
    task::AbortHandle,
};

use crate::{
    config::NetworkNamespaces,
    control::NamespaceState,
    datapath::{
        Classifier, LinkEvent, LinkWatch, MountWatch, Namespace, PacketSocket,
        link_watch::LinkWatchError,
        namespace::{self, Sighting, Visitor},
    },
    privilege::capabilities,
};

/// Events of links that wait for their turn: those of as many machines that start at once.
const NEWS_MAX: usize = 256;

/// What there is to be told.
pub(super) enum Notice {
    /// Namespaces may have come or gone.
    Look,
    /// Something happened in one.
    News(News),
    /// Nobody goes there any more.
    Ended,
}

/// What a watch says, and which.
pub(super) struct News {
    namespace: NamespaceNumber,
    watching: u64,
    event: Result<LinkEvent, LinkWatchError>,
}

/// The ways of the workers to the taps of a namespace, one each.
pub(super) type Sockets = Vec<PacketSocket>;

/// The other namespaces. Without any in the configuration there is nothing here, and nothing happens.
pub(super) struct Elsewhere(Option<Watched>);

struct Watched {
    visitor: Visitor,
    ended: oneshot::Receiver<()>,
    mounts: MountWatch,
    open: BTreeMap<NamespaceNumber, Open>,
    /// Those that are to be opened, one at a time.
    waiting: BTreeSet<Sighting>,
    /// Those that cannot be opened, which is tried again, and why not.
    refused: BTreeMap<Sighting, String>,
    sender: mpsc::Sender<News>,
    news: mpsc::Receiver<News>,
    /// Has every watch tell everything again.
    again: watch::Sender<()>,
    /// Watches that were ever begun.
    begun: u64,
}

struct Open {
    namespace: Arc<Namespace>,
    /// Nothing where it broke.
    watching: Option<Watching>,
}

/// How what is open changed.
#[derive(Default)]
struct Changed {
    /// Some go by other names from here on, and are the same otherwise.
    has_renamed: bool,
    /// These are out of sight.
    gone: Vec<Sighting>,
}

/// A task that ends with this.
struct Watching {
    number: u64,
    task: AbortHandle,
}

impl Elsewhere {
    /// Starts the one thread that keeps what it takes to go elsewhere, if that is configured, and looks what is in sight. What an
    /// earlier agent left on taps that nobody will go to comes off.
    pub fn start(config: &NetworkNamespaces, classifier: &mut Classifier) -> Result<Self> {
        let mut elsewhere = Self((!config.is_empty()).then(Watched::start).transpose()?);
        elsewhere.look(config, classifier);
        let waiting = elsewhere.waiting();
        classifier.take_off_left_behind(unselected(config, &waiting));
        classifier.settle_left_behind(&waiting);
        Ok(elsewhere)
    }

    /// The next thing that there is to be told. A call that is cancelled loses nothing.
    pub async fn next(&mut self) -> io::Result<Notice> {
        let Some(watched) = &mut self.0 else {
            return pending().await;
        };
        tokio::select! {
            biased;
            _ = &mut watched.ended => Ok(Notice::Ended),
            changed = watched.mounts.changed() => changed.map(|()| Notice::Look),
            Some(news) = watched.news.recv() => Ok(Notice::News(news)),
        }
    }

    /// Whether there is anything that is to be tried again.
    pub fn has_refused(&self) -> bool {
        let is_blind = |watched: &Watched| watched.open.values().any(|open| open.watching.is_none());
        let watched = self.0.as_ref();
        watched.is_some_and(|watched| !watched.refused.is_empty() || is_blind(watched))
    }

    /// How they are, by name: those that the agent has hold of, and those that it cannot get hold of.
    pub fn describe(&self) -> Vec<NamespaceState> {
        let states = self.states().map(|(sighting, refused)| NamespaceState {
            name: sighting.name.clone(),
            refused: refused.map(str::to_owned),
        });
        let mut states: Vec<_> = states.collect();
        states.sort_by(|one, other| one.name.cmp(&other.name));
        states
    }

    /// How many are served, and how many cannot be.
    pub fn count(&self) -> [usize; 2] {
        let refused = self.states().filter(|(_, refused)| refused.is_some()).count();
        [self.states().count() - refused, refused]
    }

    /// Each, and why it is not served.
    fn states(&self) -> impl Iterator<Item = (&Sighting, Option<&str>)> {
        let open = self.0.iter().flat_map(|watched| watched.open.values());
        let open = open.map(|open| {
            let is_blind = open.watching.is_none();
            let why = is_blind.then_some("it cannot be watched: its taps are as they were");
            (open.namespace.sighting(), why)
        });
        let refused = self.0.iter().flat_map(|watched| &watched.refused);
        open.chain(refused.map(|(sighting, why)| (sighting, Some(why.as_str()))))
    }

    /// What a namespace is called, if the agent has hold of it.
    pub fn name(&self, number: NamespaceNumber) -> Option<&str> {
        let open = self.0.as_ref()?.open.get(&number)?;
        Some(&open.namespace.sighting().name)
    }

    /// Whether there are any that are to be opened.
    fn is_behind(&self) -> bool {
        self.0.as_ref().is_some_and(|watched| !watched.waiting.is_empty())
    }

    /// The numbers of those that are to be opened.
    pub fn waiting(&self) -> BTreeSet<NamespaceNumber> {
        let waiting = self.0.iter().flat_map(|watched| &watched.waiting);
        waiting.map(|sighting| sighting.number).collect()
    }

    /// From now on every link is told once more.
    pub fn tell_again(&self) {
        if let Some(watched) = &self.0 {
            watched.again.send_replace(());
        }
    }

    /// Looks what came into sight, which is to be opened now, what is seen under another name than before, and what went out of sight.
    fn look(&mut self, config: &NetworkNamespaces, classifier: &mut Classifier) -> Changed {
        let Some(watched) = &mut self.0 else {
            return Changed::default();
        };
        let sightings = match namespace::look(config.directory(), |name| config.select(name)) {
            Ok(sightings) => sightings,
            Err(error) => {
                log::error!("cannot look for network namespaces: {error}");
                return Changed::default();
            }
        };
        watched.watch_again();
        let mut changed = Changed::default();
        for seen in &sightings {
            if let Some(open) = watched.open.get_mut(&seen.number) {
                changed.has_renamed |= open.see(seen, config, classifier);
            }
        }
        watched.refused.retain(|refused, _| sightings.contains(refused));
        let is_open = |number| watched.open.contains_key(&number);
        let waiting = sightings.iter().filter(|sighting| !is_open(sighting.number));
        watched.waiting = waiting.cloned().collect();
        let numbers: BTreeSet<_> = sightings.iter().map(|sighting| sighting.number).collect();
        let open = watched.open.values().map(|open| open.namespace.sighting());
        let gone = open.filter(|open| !numbers.contains(&open.number));
        changed.gone = gone.cloned().collect();
        changed
    }

    /// Opens one of those that came into sight: which, and the ways to it for so many workers. What cannot be opened costs nobody
    /// else anything.
    fn open_next(
        &mut self,
        workers: usize,
        classifier: &mut Classifier,
    ) -> Option<(NamespaceNumber, Option<Sockets>)> {
        let watched = self.0.as_mut()?;
        let sighting = watched.waiting.pop_first()?;
        let number = sighting.number;
        match watched.open(&sighting, workers, classifier) {
            Ok(sockets) => Some((number, Some(sockets))),
            Err(error) => {
                if namespace::is_there(&sighting) {
                    watched.refuse(sighting, format!("{error:#}"));
                }
                Some((number, None))
            }
        }
    }

    /// Lets go of a namespace.
    fn close(&mut self, number: NamespaceNumber) {
        if let Some(watched) = &mut self.0 {
            watched.open.remove(&number);
        }
    }

    /// What a watch that is not out of date told.
    fn current(&mut self, news: News) -> Option<LinkEvent> {
        let open = self.0.as_mut()?.open.get_mut(&news.namespace)?;
        open.watching
            .as_ref()
            .filter(|watching| watching.number == news.watching)?;
        let name = &open.namespace.sighting().name;
        match news.event {
            Ok(event) => Some(abroad(event, news.namespace, name)),
            Err(error) => {
                log::error!("network namespace {name}: cannot be watched: {error}");
                open.watching = None;
                None
            }
        }
    }
}

impl Watched {
    fn start() -> Result<Self> {
        let (visitor, ended) = Visitor::start(capabilities::keep_for_namespaces)
            .context("cannot start the thread that goes to other network namespaces")?;
        visitor.ensure_permitted()?;
        let (sender, news) = mpsc::channel(NEWS_MAX);
        Ok(Self {
            visitor,
            ended,
            mounts: MountWatch::new().context("cannot watch for network namespaces")?,
            open: BTreeMap::new(),
            waiting: BTreeSet::new(),
            refused: BTreeMap::new(),
            sender,
            news,
            again: watch::Sender::new(()),
            begun: 0,
        })
    }

    fn open(&mut self, sighting: &Sighting, workers: usize, classifier: &mut Classifier) -> Result<Sockets> {
        let most = namespace::most_at_once(workers);
        ensure!(
            self.open.len() < most,
            "there are more than {most}, which are all that the agent's limit of descriptors suffices for (4096 in any case)"
        );
        let namespace = Namespace::open(sighting.clone(), &self.visitor).context("it cannot be entered")?;
        let namespace = Arc::new(namespace);
        let open_sockets = move || (0..workers).map(|_| PacketSocket::open()).collect();
        let sockets: Result<Sockets, _> = namespace.visit(open_sockets)?;
        let sockets = sockets?;
        let links = links_in(&namespace)?;
        classifier.open_namespace(&namespace)?;
        let watching = Some(self.watch(&namespace, links));
        log::info!("network namespace {}: in sight", sighting.name);
        self.refused.remove(sighting);
        self.open.insert(sighting.number, Open { namespace, watching });
        Ok(sockets)
    }

    fn refuse(&mut self, sighting: Sighting, why: String) {
        if self.refused.get(&sighting) != Some(&why) {
            log::error!("network namespace {}: not served: {why}", sighting.name);
            self.refused.insert(sighting, why);
        }
    }

    /// Watches anew where a watch broke.
    fn watch_again(&mut self) {
        let broken = self.open.values().filter(|open| open.watching.is_none());
        let broken: Vec<_> = broken.map(|open| Arc::clone(&open.namespace)).collect();
        for namespace in broken {
            let Ok(links) = links_in(&namespace) else {
                continue;
            };
            let watching = self.watch(&namespace, links);
            if let Some(open) = self.open.get_mut(&namespace.number()) {
                open.watching = Some(watching);
            }
        }
    }

    fn watch(&mut self, namespace: &Namespace, mut links: LinkWatch) -> Watching {
        self.begun += 1;
        let (number, watching) = (namespace.number(), self.begun);
        let (sender, mut again) = (self.sender.clone(), self.again.subscribe());
        let task = tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    Ok(()) = again.changed() => {
                        links.tell_again();
                        continue;
                    }
                    event = links.next() => event,
                };
                let has_ended = event.is_err();
                let news = News {
                    namespace: number,
                    watching,
                    event,
                };
                if sender.send(news).await.is_err() || has_ended {
                    return;
                }
            }
        });
        Watching {
            number: watching,
            task: task.abort_handle(),
        }
    }
}

impl Open {
    /// It was seen: whether its name is another now. It keeps the one that it goes by as long as that is one of its names.
    fn see(&mut self, seen: &Sighting, config: &NetworkNamespaces, classifier: &mut Classifier) -> bool {
        let known = self.namespace.sighting();
        let is_in = |directory| known.path.parent() == Some(directory);
        let keeps = is_in(config.directory()) && config.select(&known.name) && namespace::is_there(known);
        if keeps || known == seen {
            return false;
        }
        let is_renamed = known.name != seen.name;
        if is_renamed {
            log::info!("network namespace {}: goes by {} now", known.name, seen.name);
        }
        self.namespace = Arc::new(self.namespace.seen_at(seen.clone()));
        classifier.rename_namespace(&self.namespace);
        is_renamed
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn links_in(namespace: &Namespace) -> Result<LinkWatch> {
    let runtime = runtime::Handle::current();
    let links = namespace.visit(move || {
        let _entered = runtime.enter();
        LinkWatch::new()
    })?;
    Ok(links?)
}

/// Tells the namespaces that are none of the agent's business: all, where it has none, and those that are there and not `selected` by
/// any of their names. One that is not there may have a machine in it.
fn unselected(
    config: &NetworkNamespaces,
    selected: &BTreeSet<NamespaceNumber>,
) -> impl Fn(NamespaceNumber) -> bool {
    let others = namespace::look(config.directory(), |name| !config.select(name)).unwrap_or_default();
    let others: BTreeSet<_> = others.into_iter().map(|sighting| sighting.number).collect();
    let others = &others - selected;
    let has_none = config.is_empty();
    move |number| has_none || others.contains(&number)
}

/// What happened in another namespace, as it is told here.
fn abroad(event: LinkEvent, namespace: NamespaceNumber, its_name: &str) -> LinkEvent {
    let there = |index: TapIndex| TapIndex::within(namespace, index.ifindex());
    match event {
        LinkEvent::Appeared {
            index,
            name,
            mac,
            is_tap,
        } => LinkEvent::Appeared {
            index: there(index),
            name: format!("{its_name}/{name}"),
            mac,
            is_tap,
        },
        LinkEvent::Gone { index } => LinkEvent::Gone { index: there(index) },
        LinkEvent::Listed | LinkEvent::ListedInPart => event,
    }
}
