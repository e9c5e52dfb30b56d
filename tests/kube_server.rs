//! A small API server of Kubernetes in this process, on a free port of 127.0.0.1, with a node that starts the commands
//! of pods as processes of this machine. On demand it ends watches after a change, forgets old versions, fails, or
//! refuses everybody.

use crate::support::Bench;
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub(crate) const TOKEN: &str = "a-token-of-the-tests";

#[derive(Default)]
pub(crate) struct World {
    version: u64,
    /// By plural and name.
    objects: BTreeMap<(&'static str, String), Value>,
    log: Vec<(u64, &'static str, &'static str, Value)>,
    /// Names of all Jobs that somebody asked to create, in order.
    pub created: Vec<String>,
    /// Processes of pods.
    processes: BTreeMap<String, u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They do what they are told.
    #[default]
    Work,
    /// Their image cannot be pulled.
    NoImage,
    /// No node has room for them.
    NoNode,
    /// They need more memory than they may.
    OutOfMemory,
    /// They do nothing, and end well.
    Nothing,
}

#[derive(Default)]
pub(crate) struct Trouble {
    /// A watch ends after one change, and every third one finds that its version is forgotten; of other requests every
    /// fourth fails.
    pub unsteady: AtomicBool,
    pub refuses: AtomicBool,
    /// Verbs that this account may not use, as reviews of its access say.
    pub forbidden: Mutex<Vec<&'static str>>,
    /// What becomes of the pods of all Jobs that are created from now on.
    pub fate: Mutex<Fate>,
    requests: AtomicU64,
    watches: AtomicU64,
    pub forgotten: AtomicU64,
    pub failed: AtomicU64,
}

/// Ends with the value that holds it, and its pods with it.
pub(crate) struct KubeServer {
    pub address: String,
    pub world: Arc<Mutex<World>>,
    pub trouble: Arc<Trouble>,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for KubeServer {
    fn drop(&mut self) {
        let world = self.world.lock().unwrap();
        world.processes.values().for_each(|pid| signal(*pid, libc::SIGKILL));
    }
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: a plain system call; the process is a child of this one that was not waited for.
    unsafe { libc::kill(pid as i32, signal) };
}

impl World {
    fn put(&mut self, plural: &'static str, mut object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let what = if self.objects.contains_key(&(plural, name.clone())) { "MODIFIED" } else { "ADDED" };
        self.log.push((self.version, plural, what, object.clone()));
        self.objects.insert((plural, name), object);
    }

    pub(crate) fn remove(&mut self, plural: &'static str, name: &str) -> Option<Value> {
        let mut object = self.objects.remove(&(plural, name.to_owned()))?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((self.version, plural, "DELETED", object.clone()));
        Some(object)
    }

    pub(crate) fn get(&self, plural: &'static str, name: &str) -> Option<&Value> {
        self.objects.get(&(plural, name.to_owned()))
    }

    pub(crate) fn all(&self, plural: &'static str) -> Vec<&Value> {
        self.objects.iter().filter(|((of, _), _)| *of == plural).map(|(_, object)| object).collect()
    }

    /// Kills the processes of all pods, as a node does that dies; how many there were.
    pub(crate) fn kill_pods(&self) -> usize {
        self.processes.values().for_each(|pid| signal(*pid, libc::SIGKILL));
        self.processes.len()
    }
}

fn fits(object: &Value, selector: &str) -> bool {
    let Some((key, value)) = selector.split_once('=') else { return true };
    object["metadata"]["labels"][key] == value
}

impl KubeServer {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (world, trouble) = (Arc::<Mutex<World>>::default(), Arc::<Trouble>::default());
        let answer = Answer { world: world.clone(), trouble: trouble.clone() };
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    // A client that disconnects is not an error of the server.
                    drop(Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await);
                });
            }
        });
        Self { address, world, trouble, _runtime: runtime }
    }

    /// Writes a kubeconfig into the folder of a test; the variable that names it.
    pub(crate) fn config(&self, bench: &Bench) -> (&'static str, std::path::PathBuf) {
        let path = bench.path("kubeconfig");
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{ "name": "here", "cluster": { "server": self.address } }],
            "users": [{ "name": "ada", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "here", "context": { "cluster": "here", "user": "ada", "namespace": "lab" } }],
        });
        std::fs::write(&path, text.to_string()).unwrap();
        ("KUBECONFIG", path)
    }
}

#[derive(Clone)]
struct Answer {
    world: Arc<Mutex<World>>,
    trouble: Arc<Trouble>,
}

/// Lines that go on.
struct Lines(UnboundedReceiver<Bytes>);

impl hyper::body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

type Response = hyper::Response<Lines>;

fn respond(status: u16, value: &Value) -> Response {
    let (to, from) = unbounded_channel();
    to.send(value.to_string().into()).unwrap();
    let response = hyper::Response::builder().status(status).header("content-type", "application/json");
    response.body(Lines(from)).unwrap()
}

fn refuse(code: u16, reason: &str, message: &str) -> Response {
    respond(code, &status(code, reason, message))
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
        "message": message })
}

impl hyper::service::Service<hyper::Request<Incoming>> for Answer {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        let own = self.clone();
        Box::pin(async move { Ok(own.answer(request).await) })
    }
}

impl Answer {
    async fn answer(&self, request: hyper::Request<Incoming>) -> Response {
        let bearer = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        if bearer != Some(&format!("Bearer {TOKEN}")) {
            return refuse(401, "Unauthorized", "Unauthorized");
        }
        let trouble = &self.trouble;
        if trouble.refuses.load(Ordering::SeqCst) {
            return refuse(403, "Forbidden", "jobs.batch is forbidden: User \"ada\" cannot create it in \"lab\"");
        }
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let query: BTreeMap<String, String> = request.uri().query().map_or_else(BTreeMap::new, parameters);
        let words: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (plural, name) = match words[..] {
            ["version"] => {
                return respond(200, &json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0" }));
            }
            ["api", "v1", "namespaces", "lab"] => {
                let metadata = json!({ "name": "lab" });
                return respond(200, &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata }));
            }
            ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => return self.review(request).await,
            ["apis", "batch", "v1", "namespaces", "lab", "jobs"] => ("jobs", None),
            ["apis", "batch", "v1", "namespaces", "lab", "jobs", name] => ("jobs", Some(name.to_owned())),
            ["api", "v1", "namespaces", "lab", "pods"] => ("pods", None),
            ["api", "v1", "namespaces", "lab", "services"] => ("services", None),
            _ => return refuse(404, "NotFound", &format!("there is no {path}")),
        };
        let is_watch = query.get("watch").is_some_and(|watch| watch == "true");
        let is_unsteady = trouble.unsteady.load(Ordering::SeqCst);
        if is_unsteady && !is_watch && trouble.requests.fetch_add(1, Ordering::SeqCst) % 4 == 1 {
            trouble.failed.fetch_add(1, Ordering::SeqCst);
            return refuse(500, "InternalError", "etcd has no leader");
        }
        let selector = query.get("labelSelector").cloned().unwrap_or_default();
        match (method.as_str(), name) {
            ("GET", None) if is_watch => {
                let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
                self.watch(plural, selector, since, is_unsteady)
            }
            ("GET", None) => {
                let world = self.world.lock().unwrap();
                let items: Vec<&Value> = world.all(plural).into_iter().filter(|o| fits(o, &selector)).collect();
                let metadata = json!({ "resourceVersion": world.version.to_string() });
                respond(200, &json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items }))
            }
            ("GET", Some(name)) => match self.world.lock().unwrap().get(plural, &name) {
                Some(object) => respond(200, object),
                None => refuse(404, "NotFound", &format!("{plural} \"{name}\" not found")),
            },
            ("POST", None) => match body(request).await {
                Ok(object) => self.create(plural, object),
                Err(why) => refuse(400, "BadRequest", &why),
            },
            ("DELETE", Some(name)) => match self.world.lock().unwrap().remove(plural, &name) {
                Some(object) => respond(200, &object),
                None => refuse(404, "NotFound", &format!("{plural} \"{name}\" not found")),
            },
            (method, _) => refuse(405, "MethodNotAllowed", &format!("{method} {path}")),
        }
    }

    /// Whether the account may do what it asks about.
    async fn review(&self, request: hyper::Request<Incoming>) -> Response {
        let Ok(mut review) = body(request).await else { return refuse(400, "BadRequest", "no review") };
        let attributes = &review["spec"]["resourceAttributes"];
        let is_here = attributes["namespace"] == "lab";
        let forbidden = self.trouble.forbidden.lock().unwrap();
        let allowed = is_here && !forbidden.iter().any(|verb| attributes["verb"] == *verb);
        review["status"] = json!({ "allowed": allowed });
        respond(201, &review)
    }

    fn create(&self, plural: &'static str, mut object: Value) -> Response {
        let mut world = self.world.lock().unwrap();
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if plural == "jobs" {
            world.created.push(name.clone());
        }
        if name.is_empty() || name.len() > 63 || object["metadata"].get("namespace").is_some_and(|n| n != "lab") {
            return refuse(422, "Invalid", "metadata.name: Invalid value");
        }
        if world.get(plural, &name).is_some() {
            return refuse(409, "AlreadyExists", &format!("{plural} \"{name}\" already exists"));
        }
        object["metadata"]["namespace"] = json!("lab");
        object["metadata"]["uid"] = json!(format!("uid-{}", world.version + 1));
        world.put(plural, object.clone());
        if plural == "jobs" {
            let (world, fate) = (self.world.clone(), *self.trouble.fate.lock().unwrap());
            std::thread::spawn(move || Node { world, name, job: object, fate }.run());
        }
        respond(201, world_object(&world, plural))
    }

    /// Changes since a version, as they come.
    fn watch(&self, plural: &'static str, selector: String, mut since: u64, is_unsteady: bool) -> Response {
        let (to, from): (UnboundedSender<Bytes>, _) = unbounded_channel();
        let send = move |what: &str, object: &Value| {
            let line = json!({ "type": what, "object": object }).to_string() + "\n";
            to.send(line.into()).is_ok()
        };
        let response = hyper::Response::builder().status(200).header("content-type", "application/json");
        let response = response.body(Lines(from)).unwrap();
        if is_unsteady && self.trouble.watches.fetch_add(1, Ordering::SeqCst) % 3 == 2 {
            self.trouble.forgotten.fetch_add(1, Ordering::SeqCst);
            send("ERROR", &status(410, "Expired", "too old resource version"));
            return response;
        }
        let world = self.world.clone();
        tokio::spawn(async move {
            loop {
                let news: Vec<(u64, &'static str, Value)> = {
                    let world = world.lock().unwrap();
                    let news = world.log.iter().filter(|(version, of, ..)| *version > since && *of == plural);
                    news.map(|(version, _, what, object)| (*version, *what, object.clone())).collect()
                };
                for (version, what, object) in news {
                    since = version;
                    if fits(&object, &selector) && (!send(what, &object) || is_unsteady) {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        response
    }
}

/// The object that was just put.
fn world_object<'a>(world: &'a World, plural: &'static str) -> &'a Value {
    let newest = world.log.iter().rev().find(|(_, of, ..)| *of == plural);
    &newest.unwrap().3
}

fn parameters(query: &str) -> BTreeMap<String, String> {
    let decoded = |text: &str| text.replace("%3D", "=").replace("%2F", "/");
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), decoded(value))).collect()
}

async fn body(request: hyper::Request<Incoming>) -> Result<Value, String> {
    let (mut body, mut bytes) = (request.into_body(), Vec::new());
    while let Some(frame) = std::future::poll_fn(|cx| hyper::body::Body::poll_frame(Pin::new(&mut body), cx)).await {
        bytes.extend(frame.map_err(|e| e.to_string())?.into_data().unwrap_or_default());
    }
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

/// What starts the pods of a Job.
struct Node {
    world: Arc<Mutex<World>>,
    name: String,
    job: Value,
    fate: Fate,
}

impl Node {
    fn run(&self) {
        let spec = &self.job["spec"];
        let count = spec["parallelism"].as_u64().unwrap_or(1);
        let is_indexed = spec["completionMode"] == "Indexed";
        let pods: Vec<String> = (0..count).map(|i| format!("{}-{i}-{:05}", self.name, i * 7919 % 99_991)).collect();
        for pod in &pods {
            self.put_pod(pod, json!({ "phase": "Pending" }));
        }
        if self.fate != Fate::Work {
            return self.end(&pods);
        }
        let mut children: Vec<Child> = Vec::new();
        for (i, pod) in pods.iter().enumerate() {
            children.push(self.start(pod, is_indexed.then_some(i)));
            self.world.lock().unwrap().processes.insert(pod.clone(), children[i].id());
            self.put_pod(pod, container(json!({ "running": {} }), "Running"));
        }
        let limit = spec["activeDeadlineSeconds"].as_u64().map(Duration::from_secs);
        let began = Instant::now();
        let mut codes: Vec<Option<i32>> = vec![None; pods.len()];
        let (mut is_late, mut is_ending) = (false, false);
        while codes.iter().any(Option::is_none) {
            std::thread::sleep(Duration::from_millis(20));
            for (i, child) in children.iter_mut().enumerate() {
                if codes[i].is_some() {
                    continue;
                }
                use std::os::unix::process::ExitStatusExt;
                let Some(status) = child.try_wait().unwrap() else { continue };
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
                codes[i] = Some(code);
                self.world.lock().unwrap().processes.remove(&pods[i]);
                let reason = if code == 0 { "Completed" } else { "Error" };
                let phase = if code == 0 { "Succeeded" } else { "Failed" };
                self.put_pod(
                    &pods[i],
                    container(json!({ "terminated": { "reason": reason, "exitCode": code } }), phase),
                );
            }
            let is_gone = self.world.lock().unwrap().get("jobs", &self.name).is_none();
            is_late = is_late || limit.is_some_and(|limit| began.elapsed() > limit);
            let has_failed = codes.iter().flatten().any(|code| *code != 0);
            if (is_gone || is_late || has_failed) && !is_ending {
                is_ending = true;
                let open = children.iter().zip(&codes).filter(|(_, code)| code.is_none());
                open.for_each(|(child, _)| signal(child.id(), libc::SIGTERM));
            }
        }
        let mut world = self.world.lock().unwrap();
        let Some(mut job) = world.get("jobs", &self.name).cloned() else {
            pods.iter().for_each(|pod| drop(world.remove("pods", pod)));
            return;
        };
        let condition = match (is_late, codes.iter().all(|code| *code == Some(0))) {
            (_, true) => json!({ "type": "Complete", "status": "True" }),
            (true, _) => json!({ "type": "Failed", "status": "True", "reason": "DeadlineExceeded",
                "message": "Job was active longer than specified deadline" }),
            _ => json!({ "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
                "message": "Job has reached the specified backoff limit" }),
        };
        job["status"] = json!({ "conditions": [condition] });
        world.put("jobs", job);
    }

    /// What becomes of pods that do not work.
    fn end(&self, pods: &[String]) {
        let put = |status: Value| pods.iter().for_each(|pod| self.put_pod(pod, status.clone()));
        let ended = |condition: Value| {
            let mut world = self.world.lock().unwrap();
            let mut job = world.get("jobs", &self.name).cloned().unwrap();
            job["status"] = json!({ "conditions": [condition] });
            world.put("jobs", job);
        };
        match self.fate {
            Fate::Nothing => {
                put(container(json!({ "terminated": { "reason": "Completed", "exitCode": 0 } }), "Succeeded"));
                return ended(json!({ "type": "Complete", "status": "True" }));
            }
            Fate::OutOfMemory => {
                put(container(json!({ "terminated": { "reason": "OOMKilled", "exitCode": 137 } }), "Failed"));
                return ended(json!({ "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
                    "message": "Job has reached the specified backoff limit" }));
            }
            Fate::NoImage => put(container(
                json!({ "waiting": { "reason": "ImagePullBackOff", "message":
                    "Back-off pulling image \"lab/smelt:1\": not found" } }),
                "Pending",
            )),
            _ => put(json!({ "phase": "Pending", "conditions": [{ "type": "PodScheduled", "status": "False",
                "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu." }] })),
        }
        while self.world.lock().unwrap().get("jobs", &self.name).is_some() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut world = self.world.lock().unwrap();
        pods.iter().for_each(|pod| drop(world.remove("pods", pod)));
    }

    fn put_pod(&self, name: &str, status: Value) {
        let mut labels = self.job["spec"]["template"]["metadata"]["labels"].clone();
        labels["job-name"] = json!(self.name);
        let metadata = json!({ "name": name, "namespace": "lab", "labels": labels });
        let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status });
        self.world.lock().unwrap().put("pods", pod);
    }

    fn start(&self, pod: &str, index: Option<usize>) -> Child {
        let container = &self.job["spec"]["template"]["spec"]["containers"][0];
        let words: Vec<&str> = container["command"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        assert_eq!(words[0], "smelt");
        let folder = Path::new(container["workingDir"].as_str().unwrap());
        std::fs::create_dir_all(folder).unwrap();
        let mut command = Bench::bare(folder, &words[1..]);
        for variable in container["env"].as_array().unwrap() {
            let value = variable["value"].as_str().unwrap_or(pod);
            command.env(variable["name"].as_str().unwrap(), value);
        }
        // A service's name means something in the cluster alone.
        if command.get_envs().any(|(name, _)| name == "MASTER_ADDR") {
            command.env("MASTER_ADDR", "127.0.0.1");
        }
        if let Some(index) = index {
            command.env("JOB_COMPLETION_INDEX", index.to_string());
        }
        let said = self.world.lock().unwrap().version;
        let log = std::fs::File::create(folder.join(format!("pod-{said}.txt"))).unwrap();
        command.env("SMELT_SAVE_SECONDS", "0").stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }
}

fn container(state: Value, phase: &str) -> Value {
    let status =
        json!({ "name": "smelt", "ready": false, "restartCount": 0, "image": "", "imageID": "", "state": state });
    json!({ "phase": phase, "containerStatuses": [status] })
}
