// Graphs of kernels of the simulated driver: built node by node, each behind one other, as smelt builds them.
//
// As on a GPU, a node's parameters are copied when it is added or set, and a graph's kernels fail at its launch.
#include <algorithm>
#include <memory>

#include <stdlib.h>
#include <string.h>

#include "driver.hpp"

namespace sim {

struct NodeParams {  // CUDA_KERNEL_NODE_PARAMS_v2
  Kernel* kernel;
  u32 grid[3], block[3], dynamic;
  void** parameters;
  void** extra;
  void *library_kernel, *context;
};

struct Node {
  Kernel* kernel;
  dim3 grid, block;
  u32 dynamic;
  std::vector<std::shared_ptr<u8>> parameters;
};

struct Graph {
  std::vector<Node*> nodes;
  bool ended = false;
};
struct Ready {
  Graph* of;
  std::vector<Node> nodes;
  bool ended = false;
};

static int take(const NodeParams* p, Node* node) {
  if (!p->kernel || p->library_kernel) return refuse(NOT_SUPPORTED, "a graph's node without a function");
  if (p->extra) return NOT_SUPPORTED;
  node->kernel = p->kernel;
  node->grid = dim3(p->grid[0], p->grid[1], p->grid[2]);
  node->block = dim3(p->block[0], p->block[1], p->block[2]);
  node->dynamic = p->dynamic;
  node->parameters.clear();
  for (u32 i = 0; p->kernel->parameters[i]; i++) {
    u32 bytes = p->kernel->parameters[i];
    u8* copy = (u8*)aligned_alloc(128, (bytes + 127) / 128 * 128);
    memcpy(copy, p->parameters[i], bytes);
    node->parameters.emplace_back(copy, free);
  }
  return SUCCESS;
}

}  // namespace sim

using namespace sim;

API cuGraphCreate(Graph** graph, unsigned flags) {
  BEGIN;
  if (flags) return INVALID_VALUE;
  *graph = new Graph;
  return SUCCESS;
}
API cuGraphAddKernelNode_v2(Node** node, Graph* graph, Node* const* after, size_t count, const NodeParams* params) {
  BEGIN;
  if (graph->ended) return refuse(INVALID_VALUE, "cuGraphAddKernelNode: the graph was destroyed");
  bool follows = count == 1 && !graph->nodes.empty() && after[0] == graph->nodes.back();
  if (!(follows || (count == 0 && graph->nodes.empty()))) {
    return refuse(NOT_SUPPORTED, "cuGraphAddKernelNode: the simulator has graphs of one chain only");
  }
  Node* added = new Node;
  if (int error = take(params, added)) return error;
  graph->nodes.push_back(added);
  *node = added;
  return SUCCESS;
}
API cuGraphInstantiateWithFlags(Ready** ready, Graph* graph, unsigned long long flags) {
  BEGIN;
  if (flags || graph->ended) return INVALID_VALUE;
  *ready = new Ready{graph, {}, false};
  for (Node* n : graph->nodes) (*ready)->nodes.push_back(*n);
  return SUCCESS;
}
API cuGraphExecKernelNodeSetParams_v2(Ready* ready, Node* node, const NodeParams* params) {
  BEGIN;
  if (ready->ended || ready->of->ended) return refuse(INVALID_VALUE, "a graph that was destroyed is updated");
  const std::vector<Node*>& nodes = ready->of->nodes;
  auto found = std::find(nodes.begin(), nodes.end(), node);
  if (found == nodes.end()) return refuse(INVALID_VALUE, "the node is of another graph");
  Node& of = ready->nodes[(size_t)(found - nodes.begin())];
  if (of.kernel != params->kernel) return refuse(NOT_SUPPORTED, "an update with another kernel is not simulated");
  return take(params, &of);
}
API cuGraphLaunch(Ready* ready, void* stream) {
  settle(stream);
  BEGIN;
  if (ready->ended) return refuse(INVALID_VALUE, "a graph that was destroyed is launched");
  graph_launches++;
  for (Node& n : ready->nodes) {
    std::vector<void*> parameters;
    for (auto& p : n.parameters) parameters.push_back(p.get());
    if (int error = launch(n.kernel, n.grid, n.block, n.dynamic, stream, parameters.data())) return error;
  }
  return SUCCESS;
}
// What is destroyed stays in memory, so that its use is seen.
API cuGraphExecDestroy(Ready* ready) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (ready->ended) return INVALID_VALUE;
  ready->ended = true;
  ready->nodes.clear();
  return SUCCESS;
}
API cuGraphDestroy(Graph* graph) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (graph->ended) return INVALID_VALUE;
  graph->ended = true;
  return SUCCESS;
}
