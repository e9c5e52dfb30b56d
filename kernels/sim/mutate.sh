#!/bin/bash
# Mutation check of the kernels: plants bugs in kernels/cu, one at a time, and expects the tests to fail.
#
#   mutate.sh [part of a name]       all bugs, or those whose name or file has this part
#
# REFERENCE and CORES are built test programs of `reference` and `tensor_cores`; without them cargo builds them. CXX is
# the compiler (g++). A bug is caught by the first of its checks that fails, or that takes longer than LIMIT seconds
# (60). Checks:
#
#   gpu::NAME      the test of this name of `reference`
#   old::NAME      the same on a GPU without the tensor cores of Hopper
#   tensor::NAME   the test of this name of `tensor_cores`
#   cores::PART    tests of check/cores.cpp whose name has this part; only their kernels are built
set -euo pipefail

wanted=${1:-}
limit=${LIMIT:-60}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cu=$(cd "$here/../cu" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A bug: its name, the file, the checks that must catch it, and how sed plants it.
names=() files=() checks=() edits=()
plant() {
  if [[ "$2: $1" != *"$wanted"* ]]; then return; fi
  names+=("$1") files+=("$2") checks+=("$3") edits+=("$4")
}

# ---- rows.cu
plant "norm: no sum over the block" rows.cu gpu::rms_norm 's/block_sum(squares, scratch)/squares/'
plant "norm: wide rows are written in part" rows.cu gpu::rms_norm 's/j += 256) to\[j\]/j += 512) to[j]/'
plant "norm backward: last rows are left out" rows.cu gpu::rms_norm_backward \
  's/first + ROWS_PER_BLOCK < n ?/first + ROWS_PER_BLOCK <= n + 8 ?/'
plant "norm backward: sums of the gain do not begin at 0" rows.cu gpu::rms_norm_backward \
  's/sum\[j\] = 0.f;//'
plant "norm backward: wide rows have gradients in part" rows.cu gpu::rms_norm_backward \
  '/^KERNEL(256) rms_norm_backward/,/^}/ s/j < d; j += 256) {$/j < d; j += 512) {/'
plant "norm of a sum: the sum is not written" rows.cu gpu::add_rms_norm \
  's/from\[j\] = value = value + more/value = value + more/'
plant "norm of a sum: the first row of the other" rows.cu gpu::add_rms_norm 's/more\[(i64)i \* d + j\]/more[j]/'
plant "norm backward: what is beside it is left out" rows.cu gpu::rms_norm_backward_add \
  's/beside ? value + /beside ? value + 0.f * /'
plant "bias backward: columns overlap between blocks" rows.cu gpu::bias_backward \
  '/sum_rows_partial/,/^}/ s/blockIdx.y \* 256/blockIdx.y * 128/'
plant "bias backward: the last part is left out" rows.cu gpu::bias_backward 's/i < parts; i++/i < parts - 1; i++/'
plant "norm: the gain is not kept" rows.cu gpu::rms_norm 's/kept_gain\[j\] = gain\[j\];/;/'
plant "norm: a block's second row is the first again" rows.cu gpu::rms_norm \
  's/from = x + (i64)i \* d/from = x + (i64)blockIdx.x * d/'
plant "swiglu: the gate of another row" rows.cu gpu::swiglu 's/= gated(from\[j\], /= gated(h[row * f + j], /'
plant "rows: blocks do not go on" math.cuh tensor::more_rows_than_blocks_are_computed \
  's/row += (i64)gridDim.x \* (256 >> l)/row += n/'
plant "rope: backward turns forward" rows.cu gpu::rope 's/backward ? -sines/backward ? sines/'
plant "rope: heads without the offset" rows.cu gpu::rope 's#row \* width + offset#row * width#'
plant "rows: a lane has the row of its neighbour" math.cuh "gpu::gather gpu::rope" \
  's/lane == first ? x\[row\] : T(0), 0, threads/lane == first ? x[row] : T(0), threads > 1, threads/'
plant "rows: narrow rows have the first one of the warp" math.cuh "gpu::gather gpu::rope" 's/l < 5 ? 1 << l : 32/32/'
plant "bias: rows in part" rows.cu gpu::bias \
  's/EACH_ROW(row, n, l) y\[row \* d + j\] += of_column/EACH_ROW(row, n - 1, l) y[row * d + j] += of_column/'
plant "norm backward: factors are read too early" rows.cu gpu::rms_norm_backward \
  '/factors\[threadIdx.x\] = /,/__syncthreads/ s/__syncthreads();//'
plant "norm backward: factors of the first block" rows.cu gpu::rms_norm_backward \
  's/= rstd\[first + threadIdx.x\]/= rstd[threadIdx.x]/'
plant "embedding backward: ids are compared too early" rows.cu gpu::embedding_backward \
  '/id_of\[own\] = ids/,/__syncthreads/ s/__syncthreads();//'
plant "embedding backward: links are followed too early" rows.cu gpu::embedding_backward \
  '/is_first\[own\] = first;/,/__syncthreads/ s/__syncthreads();//'
plant "embedding backward: links are used again too early" rows.cu tensor::many_rows_of_few_ids_are_added_in_order \
  '/d + j\] = sum;/,/^}/ s/__syncthreads();//'
plant "embedding backward: the rest of a bucket is not masked" rows.cu gpu::embedding_backward \
  's/if (own < here) {/if (own < 256) {/'
plant "embedding backward: the last row of an id, not the next" rows.cu gpu::embedding_backward \
  's/if (at > own) next = at/if (at > own \&\& next == 256) next = at/'
plant "embedding backward: every row is a first" rows.cu gpu::embedding_backward 's/else first = 0;/else first = 1;/'
plant "embedding backward: long buckets end early" rows.cu tensor::many_rows_of_few_ids_are_added_in_order \
  '/^KERNEL(256) embedding_backward/,/^}/ s/start < bucket.end; start += 256/start < bucket.end; start += 4096/'
plant "embedding backward: wide rows are added in part" rows.cu gpu::embedding_backward \
  '/^KERNEL(256) embedding_backward/,/^}/ s/blockIdx.y \* 256/blockIdx.y * 128/'
plant "choices: more than a warp has are not read" rows.cu \
  tensor::tokens_may_have_more_choices_than_a_warp_has_threads \
  's/slots\[token \* k + start + lane\]/slots[token * k + lane]/'
plant "choices: the last one is left out" rows.cu "gpu::gather_backward gpu::combine" \
  's/i < here; i++)$/i < here - (k > 1); i++)/'
plant "choices: the weight of the first" rows.cu gpu::combine \
  's/__shfl_sync(0xffffffffu, weight, i)/__shfl_sync(0xffffffffu, weight, 0)/'
plant "choices: columns beyond the last" rows.cu "gpu::combine gpu::dispatch" \
  's/if (first + 32 \* i < d)/if (first + 32 * i <= d)/'
plant "choices: wide rows are added in part" rows.cu gpu::combine 's/first += 128)$/first += 256)/'
plant "dispatch: wide rows are read in part" rows.cu gpu::dispatch \
  's/x\[token \* d + first + 32 \* i\]/x[token * d + first % 128 + 32 * i]/'
plant "combine backward: wide rows are read in part" rows.cu gpu::combine_backward \
  '/^KERNEL(256) combine_backward/,/^}/ s/j < d; j += 256) {/j < d; j += 512) {/'
plant "combine backward: slots are read too early" rows.cu gpu::combine_backward \
  '/slot_of\[i\] = slots/,/__syncthreads/ s/__syncthreads();//'
plant "combine backward: the weight of another choice" rows.cu gpu::combine_backward \
  's/float weight = weight_of\[i\]/float weight = weight_of[0]/'

# ---- router.cu
plant "best: the last of equal ones in a warp" router.cu gpu::route 's/other_at < at)/other_at > at)/'
plant "best: the last of equal ones in a lane" router.cu gpu::route 's/values\[i\] > largest/values[i] >= largest/'
plant "route: many experts are scored in part" router.cu gpu::route \
  '/if (token >= n) return;/,/__syncwarp/ s/j < e; j += 32) {/j < e; j += 64) {/'
plant "route: scores are read before all are written" router.cu gpu::route \
  '/chosen\[j\] = score + of_bias/,/__syncwarp/ s/__syncwarp();//'
plant "route: a group is looked for before the last is out" router.cu gpu::route \
  '/is_kept\[kept\] = 1;/,/__syncwarp/ s/__syncwarp();//'
plant "route: an expert is looked for before the last is out" router.cu gpu::route \
  '/weight_of\[i\] = score;/,/__syncwarp/ s/__syncwarp();//'
plant "route: the group of an expert by the wrong size" router.cu gpu::route \
  's#is_kept\[j / size\]#is_kept[j / groups]#'
plant "route: groups of one expert" router.cu gpu::route 's/size > 1 ? first + second : first/first + second/'
plant "count: no atomic" router.cu gpu::route 's/atomicAdd(&\(count\[ids\[choice\] % e\]\), 1u)/\1 += 1u/'
plant "count: counts before all are zero" router.cu gpu::route '/count\[j\] = 0;/,/__syncthreads/ s/__syncthreads();//'
plant "count: counts are written before all are counted" router.cu gpu::route \
  '/atomicAdd/,/__syncthreads/ s/__syncthreads();//'
plant "first rows: starts are read too early" router.cu gpu::route \
  '/ends\[j\] = end;/,/__syncthreads/ s/__syncthreads();//'
plant "first rows: blocks do not add up" router.cu gpu::route 's/row += count;/row = count;/'
plant "place: choices are compared too early" router.cu gpu::route \
  '/of_block\[threadIdx.x\] =/,/__sync/ s/__syncthreads();//'
plant "place: the own choice counts as earlier" router.cu gpu::route \
  's/i < (int)threadIdx.x; i++/i <= (int)threadIdx.x; i++/'
plant "route backward: the mean is not divided" router.cu gpu::route_backward 's#mean = mean / sum;##'
plant "balance: sums are read too early" router.cu gpu::balance \
  '/sums\[t\] = sum;/,/__sync/ s/__syncthreads();//'
plant "balance: a part reaches into the next document" router.cu gpu::balance \
  's/here = rows.end - first < TOKENS ? rows.end - first/here = n - first < TOKENS ? n - first/'
plant "balance: equal scores all count" router.cu gpu::balance 's/(row\[j\] == score && j < expert)/false/'
plant "balance: the gradient of one token too many" router.cu gpu::balance \
  's/t < last; t += WARPS/t <= last; t += WARPS/'
plant "balance: tokens of all documents" router.cu gpu::balance \
  's/double tokens = rows.end - rows.start/double tokens = n/'
plant "route: the bias is read too early" router.cu gpu::route \
  '/of_bias\[j\] = bias\[j\]/,/__sync/ s/__syncthreads();//'
plant "route: weights are not normalised" router.cu gpu::route \
  's#normalise ? weight_of\[i\] / sum#false ? weight_of[i] / sum#'
plant "route backward: scores are read too early" router.cu gpu::route_backward \
  '/id_of\[i\] = ids\[token/,/__sync/ s/__syncwarp();//'
plant "balance: routes of the first tokens" router.cu gpu::balance \
  's/id_of\[i\] = ids\[(i64)first \* k + i\]/id_of[i] = ids[i]/'
plant "balance: f is read too early" router.cu gpu::balance '/f\[j\] = counts/,/__sync/ s/__syncthreads();//'
plant "bounds: of the document before" device.cuh gpu::balance \
  's/ends ? (int)ends\[i\] : n}/ends \&\& i ? (int)ends[i - 1] : n}/'
plant "bounds: are read too early" device.cuh gpu::balance '/^DEVICE Bounds bounds_of_block/,/^}/ s/__syncthreads();//'
plant "balance bias: one more is more" router.cu gpu::balance_bias 's/total < load ?/total <= load ?/'
plant "count: an expert's end, not its rows" router.cu gpu::count 's/(i ? ends\[i - 1\] : 0)/(i ? ends[0] : 0)/'

# ---- head.cu, and what packs keys
plant "head: sums are relative to the first largest" head.cu gpu::head \
  's/sum \*= exp_f64((double)own - (double)logit);//'
plant "head: sums of threads are relative to their own" head.cu gpu::head \
  's/sum \* exp_f64((double)own - (double)largest)/sum/'
plant "head backward: the onehot of another row" head.cu gpu::head_backward 's/of_row(targets, row, l)/targets[0]/'
plant "head backward: lse has no gradient" head.cu gpu::head_backward 's/ + dlse \* softmax)/)/'
plant "pack: the shared part of the first head alone" attention.cu tensor::latent_attention_is_that_of_the_cpu \
  's/head < heads; head++) of_k\[/head < 1; head++) of_k[/'
plant "pack: values one column late" attention.cu tensor::latent_attention_is_that_of_the_cpu \
  's/of_v\[head \* value + c - nope\]/of_v[head * value + (c - nope + 1) % value]/'

# ---- quantise.cu
plant "rows: columns beyond the last" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_rows/,/^}/ s/first + i < d ?/first < d ?/'
plant "rows: saturation without an atomic" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_rows/,/^}/ s/atomicOr(saturated, 1u)/*saturated = 1u/'
plant "rows: infinities do not count as saturated" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_rows/,/^}/ s/any >= INFINITE/any > INFINITE/'
plant "columns: no barrier before scales" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_columns/,/^}/ s/__syncthreads();//'
plant "columns: the last part has no say in the scale" quantise.cu gpu::lower 's/p < 4; p++/p < 3; p++/'
plant "columns: tokens of the next segment" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_columns/,/^}/ s/row < band.end \&\& column/row < (int)ends[segments - 1] \&\& column/'
plant "columns: the gap behind a segment is not zero" quantise.cu gpu::low_gradient \
  's/to_e4m3(values\[lane \* 4 + i\]\[c\] \/ by)/(band.start + lane * 4 + i < band.end ? & : (u8)56)/'
plant "tiles: maxima of half the rows" quantise.cu gpu::lower 's/row < band.end; row += 2)/row < band.end; row += 4)/'
plant "tiles: maxima are read too early" quantise.cu gpu::lower \
  '/scratch\[threadIdx.x >> 5\] = here/,/__sync/ s/__syncthreads();//'
plant "tiles: the scale of the first matrix" quantise.cu gpu::low_gemm \
  '/^KERNEL(256) quantise_tiles/,/^}/ s/scale\[(i64)blockIdx.x \* gridDim.y + blockIdx.y\]/scale[0]/'
plant "scales: a matrix by its first tiles" quantise.cu tensor::many_tiles_have_one_scale \
  '/^KERNEL(256) scales_of/,/^}/ s/w < 8; w++/w < 1; w++/'
plant "scales: maxima are read too early" quantise.cu "gpu::lower gpu::low_gemm" \
  '/^KERNEL(256) scales_of/,/^}/ s/__syncthreads();//'
plant "blocks: maxima are read too early" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_blocks/,/^}/ s/  __syncthreads();//'
plant "blocks: maxima of half the columns" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_blocks/,/^}/ s/w < 8; w++/w < 2; w++/'
plant "blocks: the last rows are left out" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_blocks/,/^}/ s/i < rows; i += 8/i < rows - 1; i += 8/'
plant "blocks: columns beyond the last" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_blocks/,/^}/ s/column < d ? x/column < pitch ? x/'
plant "blocks: infinities do not count as saturated" quantise.cu gpu::lower \
  '/^KERNEL(256) quantise_blocks/,/^}/ s/seen.largest >= INFINITE/seen.largest > 2 * INFINITE/'
plant "transpose: no barrier" quantise.cu "gpu::low_gemm" '/^DEVICE void transpose/,/^}/ s/__syncthreads();//'
plant "transpose: padding is not written" quantise.cu "gpu::low_gemm" 's/row < to_pitch) y/row < rows) y/'
plant "transpose scales: in place" quantise.cu tensor::products_are_those_of_the_cpu \
  's/y\[at + col \* rows + row\]/y[at + i]/'
plant "transpose tokens: no barrier" quantise.cu gpu::low_gradient \
  '/^KERNEL(256) transpose_tokens/,/^}/ s/__syncthreads();//'
plant "transpose tokens: bands begin at their segment" quantise.cu tensor::products_are_those_of_the_cpu \
  '/^KERNEL(256) transpose_tokens/,/^}/ s/(i64)blockIdx.x \* SIDE + i % SIDE/(i64)band.start + i % SIDE/'
plant "scales by rows: of the first band" quantise.cu gpu::low_gemm \
  's/scale\[(i64)blockIdx.x \* across + i % across\]/scale[i % across]/'
plant "scales by columns: tiles of 64" quantise.cu gpu::low_gradient 's#across + j / SIDE#across + j / 64 % across#'
plant "round: the pad is not zero" quantise.cu gpu::low_gemm \
  's/to_bf16(j < d ? x\[row \* d + j\] : 0.f)/to_bf16(x[row * d + (j < d ? j : 0)])/'

plant "both: no barrier before the maxima are read" quantise.cu "gpu::lower_both gpu::swiglu_lower" \
  '/^DEVICE void make_both/,/^}/ s/  __syncthreads();//'
plant "both: rows have the scale of another tile" quantise.cu gpu::lower_both \
  's/row_scale\[row \* across + at\]/row_scale[row * across]/'
plant "gated: value and gate swapped" quantise.cu gpu::swiglu_lower \
  's/gated(\(h\[.*column\]\), \(h\[.*column\]\))/gated(\2, \1)/'
plant "gated: rows as far apart as those of the result" quantise.cu gpu::swiglu_lower \
  's/gated(h\[row \* 2 \* d + column\]/gated(h[row * d + column]/'
plant "gated gradient: values overwrite gates too early" quantise.cu gpu::swiglu_backward_lower \
  '/write_both(values, band, blockIdx.y, 2/,/pragma/ s/  __syncthreads();//'
plant "gated gradient: values are read too early" quantise.cu gpu::swiglu_backward_lower \
  '/of_ups.largest_finite;$/,/^}/ s/  __syncthreads();//'
plant "gated gradient: values have the maxima of gates" quantise.cu gpu::swiglu_backward_lower \
  's/= of_ups.largest_finite/= of_gates.largest_finite/'
plant "gated gradient: saturation of values is not seen" quantise.cu gpu::swiglu_backward_lower \
  's/ || of_ups.largest >= INFINITE//'
plant "gated gradient: rows of the next segment" quantise.cu gpu::swiglu_backward_lower \
  's/^    if (row < band.end) {/    if (row < (int)ends[segments - 1]) {/'
plant "both: only one half of the rows counts for a column" quantise.cu gpu::lower_both \
  's/largest\[c\] > largest\[SIDE + c\] ? largest\[c\] : largest\[SIDE + c\]/largest[c]/'
plant "both: rows of the next segment are written" quantise.cu gpu::lower_both \
  's/for (int i = warp; band.start + i < band.end \&\& i < SIDE; i += 8)/for (int i = warp; i < SIDE; i += 8)/'

# ---- products.cu
plant "tiles are read too early" products.cu gpu::gemm '/b(first + k, i)/,/__sync/ s/__syncthreads();//'
plant "tiles are used again too early" products.cu gpu::gemm '/sum\[i\]\[j\] = fmaf/,/__sync/ s/__syncthreads();//'
plant "terms in another order" products.cu gpu::gemm \
  's/for (int k = 0; k < depth; k++)/for (int k = depth - 1; k >= 0; k--)/'
plant "one column too many is stored" products.cu gpu::gemm 's/column + j < cols) c\[/column + j <= cols) c[/'
plant "C is added to whatever add says" products.cu gpu::gemm 's/sum\[i\]\[j\] = add \&\& row/sum[i][j] = row/'
plant "the same B for all matrices" products.cu gpu::latent_attention 's/b += blockIdx.z \* b_next;//'
plant "grouped: w of the tile, not of the segment" products.cu gpu::grouped_gemm \
  's/w += tile.segment \*/w += blockIdx.y */'
plant "grouped: rows of the next segment" products.cu gpu::grouped_gradient \
  '/^KERNEL(256) grouped_gradient/,/^}/ s/to = ends\[e\];/to = ends[e] + 1;/'
plant "old bf16: w of the first segment" products.cu old::low_gemm \
  '/^KERNEL(256) any_bf16_gemm/,/^}/ s/b += (i64)tile.segment \* n \* pitch;//'
plant "old bf16: the pitch of the other operand" products.cu old::low_gradient 's/dy\[t \* dy_pitch/dy[t * x_pitch/'
plant "old fp8: a scale of 64 columns" products.cu old::low_gemm 's#+ j0 / 128) \* blocks#+ j0 / 64) * blocks#'
plant "old fp8: bands are rounded down" products.cu old::low_gradient 's#: 0)) + 127) / 128#: 0)) + 0) / 128#'
plant "old fp8: the scale of the first band" products.cu old::low_gradient \
  's/dy_scale\[band \* out/dy_scale[first * out/'

# ---- attention.cu
plant "the query is read too early" attention.cu gpu::attention \
  '/^DEVICE float attend/,/^}/ { /sum\[i \* h.value + c\] = 0.f;/,/__sync/ s/__syncthreads();// }'
plant "sums are not shrunk" attention.cu gpu::attention 's/sum\[i \* h.value + c\] \* keep\[i\]/sum[i * h.value + c]/'
plant "the total is not shrunk" attention.cu gpu::attention \
  's/total\[i\] = total\[i\] \* keep\[i\] +/total[i] = total[i] +/'
plant "a query sees the next key" attention.cu gpu::grouped_attention \
  's/0, 1, keys, position + 1,$/0, 1, keys, position + 2,/'
plant "a query sees the document before" attention.cu gpu::attention \
  's#keys{h, row - position, head#keys{h, row - position - (row > position), head#'
plant "wide heads are read in part" attention.cu "gpu::cached_attention gpu::latent_attention" \
  's/c < width; c += KEYS) q\[i \* width/c < width; c += 2 * KEYS) q[i * width/'
plant "cached: every head with the first query" attention.cu gpu::cached_attention \
  's/q + (i < queries ? i : 0) \* width/q/'
plant "cached: heads share the first one's weights" attention.cu gpu::cached_attention \
  's/p\[(i < queries ? i : 0) \* KEYS + j\]/p[j]/'
plant "cached: heads behind the first eight are left out" attention.cu \
  tensor::more_heads_than_a_block_serves_read_one_key 's/blockIdx.y % parts \* TOGETHER/0/'
plant "wide values are written in part" attention.cu "gpu::cached_attention gpu::latent_attention" \
  's/c < h.value; c += KEYS) o/c < h.value; c += 2 * KEYS) o/'
plant "means: of one lane" attention.cu gpu::attention_backward 's/  sum = warp_sum(sum);//'
plant "dq: ds is read too early" attention.cu gpu::attention_backward \
  '/ds\[threadIdx.x\] = p \* (dp - mean)/,/__sync/ s/__syncthreads();//'
plant "dq: ds is used again too early" attention.cu gpu::attention_backward \
  '/^KERNEL(128) attention_dq/,/^}/ { /sum\[c\] = d;/,/__sync/ s/__syncthreads();// }'
plant "dkv: earlier queries see the key" attention.cu gpu::attention_backward \
  's/if (i >= row \&\& i < end)/if (i < end)/'
plant "dkv: queries of the next document" attention.cu gpu::grouped_attention_backward \
  's/end <= row; document++) end/end <= row + 1; document++) end/'
plant "dkv: ds is used again too early" attention.cu gpu::attention_backward \
  '/if (is_key) dk_sum/,/__sync/ s/__syncthreads();//'
plant "split: the shared part of the last head" attention.cu gpu::attention_backward 's/else sum += d;/else sum = d;/'
plant "cached: a row of the next request" attention.cu gpu::cached_attention \
  's/row >= requests\[at\]/row > requests[at]/'
plant "cached: a row sees the next key" attention.cu gpu::cached_attention \
  's/(row - r.first) + 1;/(row - r.first) + 2;/'
plant "cached: the last row of a page is in the next one" attention.cu "gpu::cached_attention gpu::latent_attention" \
  's#int page = key / page_rows;#int page = (key + 1) / page_rows;#'
plant "cached: rows go on from page to page" attention.cu "gpu::cached_attention gpu::latent_attention" \
  's/(key - page \* page_rows) \* row/key * row/'
plant "cached: values of a block lie in one page" attention.cu "gpu::cached_attention gpu::latent_attention" \
  's/int left = page_rows - key % page_rows;/int left = count;/'
plant "cached: a run of values ends a row too late" attention.cu "gpu::cached_attention gpu::latent_attention" \
  's/int left = page_rows - key % page_rows;/int left = page_rows - key % page_rows + 1;/'
plant "cached: pages of the first request" attention.cu "gpu::cached_attention gpu::latent_attention" \
  's/keys{pages + r.page, /keys{pages, /'
plant "latent: keys are read before they are there" attention.cu gpu::latent_attention \
  '/staged\[j \* pitch + c\] = key\[c\];/,/__sync/ s/__syncthreads();//'
plant "latent: weights are read before they are there" attention.cu gpu::latent_attention \
  '/keep\[head\] = kept;/,/__sync/ s/__syncthreads();//'
plant "latent: keys are replaced too early" attention.cu gpu::latent_attention 's#__syncthreads();  // the keys and.*##'
plant "latent: sums keep their scale" attention.cu gpu::latent_attention \
  's/value + c\] \* keep\[i\] : 0.f/value + c] : 0.f/'
plant "latent: heads behind the first sixteen are left out" attention.cu \
  tensor::more_heads_than_a_block_serves_read_one_key 's/first = blockIdx.y \* together/first = 0/'
plant "latent: the second half has the queries of the first" attention.cu \
  tensor::more_heads_than_a_block_serves_read_one_key \
  's/(warp + LATENT_WARPS < queries ? warp + LATENT_WARPS : 0)/warp/'
plant "latent: rows of the block before are keys" attention.cu gpu::latent_attention \
  's/int here = seen - start < LATENT_KEYS ? seen - start : LATENT_KEYS;/int here = LATENT_KEYS;/'
plant "latent: sums of one lane" attention.cu gpu::latent_attention 's/kept + warp_sum(e);/kept + e;/'
plant "place: dv over dk" attention.cu tensor::latent_attention_is_that_of_the_cpu \
  's/(nope + value) + nope + (i/(nope + value) + (i/'

# ---- head.cu, optimizer.cu, sample.cu
plant "head: the largest of one warp" head.cu gpu::head 's/largest = block_max(own, scratch)/largest = warp_max(own)/'
plant "head: the next row's target" head.cu gpu::head 's/row\[targets\[blockIdx.x\]\]/row[targets[0]]/'
plant "head backward: the sign of the softmax" head.cu gpu::head_backward 's/onehot - softmax/onehot + softmax/'
plant "head backward: the pad in bf16 is not written" head.cu tensor::the_head_is_that_of_the_cpu \
  's/EACH_COLUMN(j, pitch, l) dlogits/EACH_COLUMN(j, v, l) dlogits/'
plant "square sum: one element of the next block" optimizer.cu gpu::square_sum \
  's/j < BLOCK \&\& first/j <= BLOCK \&\& first/'
plant "total: values are read too early" optimizer.cu gpu::total \
  '/values\[threadIdx.x\] =/,/__sync/ s/__syncthreads();//'
plant "total: values are used again too early" optimizer.cu gpu::total '/sum += squared/,/__sync/ s/__syncthreads();//'
plant "total: the first sum" optimizer.cu gpu::total 's/sums\[at\] = adds/sums[0] = adds/'
plant "clip: never below 1" optimizer.cu gpu::clip 's/by < 1.0 ? by/by > 1.0 ? by/'
plant "average: the rest is not weighed" optimizer.cu gpu::average 's/x\[i\] \* rest/x[i]/'
plant "adamw: decay is left out" optimizer.cu gpu::adamw 's/w\[i\] \* f.keep -/w[i] -/'
plant "adamw: the second moment in bf16" optimizer.cu gpu::adamw_with_moments_in_bf16 \
  's/\[i\] = to_bf16(second)/[i] = to_bf16(first)/'
of_step=tensor::a_step_writes_the_fp8_forms_of_its_weight
plant "adamw in FP8: no barrier before the scale" optimizer.cu $of_step \
  '/^KERNEL(256) adamw_fp8/,/^}/ s/  __syncthreads();//'
plant "adamw in FP8: rows beyond the matrix" optimizer.cu $of_step \
  's/if (first + i < out \&\& column < in)/if (column < in)/'
plant "adamw in FP8: the scale of one warp" optimizer.cu $of_step \
  's/for (int i = 0; i < 8; i++) most/for (int i = 0; i < 1; i++) most/'
plant "adamw in FP8: scales are not turned" optimizer.cu $of_step \
  's/(matrix \* gridDim.y + blockIdx.y) \* bands + band/(i64)blockIdx.x * gridDim.y + blockIdx.y/'
plant "adamw in FP8: every matrix is the first" optimizer.cu $of_step 's#matrix = blockIdx.x / bands;#matrix = 0;#'
plant "adamw in FP8: never powers of two" optimizer.cu $of_step 's/scale_of(most, 1, power)/scale_of(most, 1, 0)/'
plant "adamw in FP8: the band of another row" optimizer.cu $of_step 's/to_pitch + first + lane/to_pitch + lane/'
plant "draw: the last of equal tokens" sample.cu gpu::draw 's/weights\[b\] \&\& a < b)/weights[b] \&\& a > b)/'
plant "draw: the last of equal tokens, without chance" sample.cu gpu::draw \
  's/weight > best/weight >= best/'
plant "draw: steps of the sort overlap" sample.cu gpu::draw '/order\[other\] = a;/,/__sync/ s/__syncthreads();//'
plant "draw: what is no token comes first" sample.cu gpu::draw 's/weight(e) : -1.0;/weight(e) : 2.0;/'
plant "draw: one token too few" sample.cu gpu::draw 's/while (kept < limit \&\& held/while (kept + 1 < limit \&\& held/'
plant "draw: weights are added before they are there" sample.cu gpu::draw \
  '/of_chunk\[j\] = tokens.weight(e);/,/__sync/ s/__syncthreads();//'
plant "draw: sums of a chunk begin at 0" sample.cu gpu::draw 's/ends\[found - 1\] : 0.0/0.0 : 0.0/'
plant "draw: a chunk too late" sample.cu gpu::draw \
  's/!(ends\[found\] > passed)/!(found > 0 \&\& ends[found - 1] > passed)/'
plant "draw: weights of the last chunk" sample.cu gpu::draw \
  's/weights\[j\] = tokens.weight(tokens.exponential(first + j));/;/'
plant "draw: logits that are not kept are those of the beginning" sample.cu \
  tensor::a_token_of_a_large_vocabulary_is_drawn_as_on_the_cpu 's/kept\[j\] : row\[j\]/kept[j] : row[j - held]/'
plant "draw: the place is not hashed" sample.cu gpu::draw 's/mix(seed) ^ stream) ^ index)/mix(seed) ^ stream))/'

# ---- math.cuh
plant "tile of a block: it is read before it is found" math.cuh gpu::lower \
  '/^DEVICE Tile tile_of_block/,/^}/ s/  __syncthreads();//'
plant "block sum: scratch is read too early" math.cuh gpu::rms_norm \
  '/^template <class T> DEVICE T block_sum/,/T sum = 0/ s/__syncthreads();//'
plant "block sum: scratch is used again too early" math.cuh gpu::rms_norm_backward \
  '/sum += scratch\[w\]/,/__sync/ s/__syncthreads();//'
plant "block max: scratch is used again too early" math.cuh gpu::attention \
  '/largest = fmaxf(largest, scratch/,/__sync/ s/__syncthreads();//'
plant "warp sum: half a warp" math.cuh gpu::rms_norm '/DEVICE T warp_sum/,/^}/ s/o = 16;/o = 8;/'
plant "tiles: the last of a segment is too long" math.cuh gpu::low_gemm \
  's/start + height < end ? start + height : end/start + height/'
plant "tiles: the second begins where the first did" math.cuh old::low_gemm \
  's/before + (number - first) \* height/before + (number - first) * (height - 1)/'
plant "e4m3: the smallest numbers" math.cuh gpu::cast 's/(float)m \* 0.001953125f/0.f/'

# ---- device.cuh
plant "descriptor: atoms of 512 bytes" device.cuh cores::fp8_gemm 's/(u64)(1024 >> 4) << 32/(u64)(512 >> 4) << 32/'
plant "descriptor: the next columns" device.cuh cores::bf16_gradient 's/(u64)(next >> 4) << 16/(u64)(next >> 5) << 16/'

# ---- tiles.cuh
plant "ring: the phase does not flip" tiles.cuh cores::fp8_gemm 's/phase ^= 1;//'
plant "ring: a stage is free when half the warps left" tiles.cuh cores::fp8_gemm 's/MULTIPLIERS = 8;/MULTIPLIERS = 4;/'
plant "cut: tiles of 32 experts do not add up" tiles.cuh cores::fp8_gemm \
  's/before\[e\] = tiles + sum - count/before[e] = sum - count/'
plant "cut: an expert's own tiles count as before" tiles.cuh cores::bf16_gemm 's/tiles + sum - count;/tiles + sum;/'
plant "find: an expert too late" tiles.cuh cores::bf16_gemm \
  's/(u32)tile >= before\[expert + 1\]/(u32)tile > before[expert + 1]/'
plant "find: never back" tiles.cuh cores::fp8_gemm 's/while ((u32)tile < before\[expert\]) expert--;//'
plant "order: the last band is as high as all" tiles.cuh cores::fp8_gemm \
  's/rows - first < BAND ? rows - first : BAND/BAND/'
plant "place: the order of another expert" tiles.cuh cores::bf16_gradient \
  's/Order at(tile - expert \* rows \* columns/Order at(tile/'
plant "store: a row too many" tiles.cuh cores::bf16_gemm \
  's/row + 8 \* half >= end) continue/row + 8 * half > end) continue/'
plant "store: columns beyond the last" tiles.cuh cores::fp8_gradient \
  's/column + 8 \* j >= columns/column + 8 * j >= columns + 2/'
plant "store: adds to zero" tiles.cuh cores::bf16_gemm 's/= add \&\& inside ?/= false ?/'
plant "accumulators: rows of a warp" tiles.cuh cores::bf16_gemm 's/(thread >> 5 \& 3) \* 16/(thread >> 5 \& 3) * 8/'

# ---- bf16_gemm.cu
plant "products do not wait for tiles" bf16_gemm.cu cores::bf16_gemm \
  's/mbarrier_wait(&full\[ring.stage\], ring.phase);//'
plant "copies do not wait for products" bf16_gemm.cu cores::bf16_gemm \
  's/mbarrier_wait(&empty\[ring.stage\], ring.phase ^ 1);//'
plant "products wait for the other phase" bf16_gemm.cu cores::bf16_gemm \
  's/(&full\[ring.stage\], ring.phase)/(\&full[ring.stage], ring.phase ^ 1)/'
plant "copies wait for the other phase" bf16_gemm.cu cores::bf16_gemm 's/ring.phase ^ 1)/ring.phase)/'
plant "a stage is released while it is read" bf16_gemm.cu cores::bf16_gemm 's/wgmma_wait<1>();//'
plant "a stage is released before its product" bf16_gemm.cu cores::bf16_gemm \
  's/&empty\[previous\]/\&empty[ring.stage]/; s/block > 0 \&\& lane/lane/'
plant "the last stage is not released" bf16_gemm.cu cores::bf16_gemm 's/^      if (lane == 0) mbarrier_arrive.*//'
plant "rows are stored before the last product" bf16_gemm.cu cores::bf16_gemm 's/wgmma_wait<0>();//'
plant "the barrier expects A only" bf16_gemm.cu cores::bf16_gemm \
  's/mbarrier_expect(arrived, S::STAGE)/mbarrier_expect(arrived, A_BYTES)/'
plant "the barrier expects too much" bf16_gemm.cu cores::bf16_gemm \
  's/mbarrier_expect(arrived, S::STAGE)/mbarrier_expect(arrived, S::STAGE + 16)/'
plant "sums do not begin at zero" bf16_gemm.cu cores::bf16_gemm 's/block + i != 0/1/'
plant "sums begin at zero in each stage" bf16_gemm.cu cores::bf16_gemm 's/block + i != 0/i != 0/'
plant "steps of 16 bytes along K" bf16_gemm.cu cores::bf16_gemm 's/later(a_tile, i \* 32)/later(a_tile, i * 16)/'
plant "steps along K of the other layout" bf16_gemm.cu cores::bf16_gemm 's/B_MN ? 2048 : 32/B_MN ? 1024 : 32/'
plant "both warpgroups multiply the first rows" bf16_gemm.cu cores::bf16_gemm \
  's/k_major(stage + group \* 64 \* BLOCK \* 2)/k_major(stage)/'
plant "ends are read before they are cut" bf16_gemm.cu cores::bf16_gemm 's/^  __syncthreads();//'
plant "the expert of another tile" bf16_gemm.cu cores::bf16_gemm \
  's/block \* BLOCK, column, rows.expert)/block * BLOCK, column, 0)/'

# ---- bf16_gradient.cu
plant "products do not wait for tokens" bf16_gradient.cu cores::bf16_gradient \
  's/mbarrier_wait(&full\[ring.stage\], ring.phase);//'
plant "copies do not wait for products" bf16_gradient.cu cores::bf16_gradient \
  's/mbarrier_wait(&empty\[ring.stage\], ring.phase ^ 1);//'
plant "a stage is released while it is read" bf16_gradient.cu cores::bf16_gradient 's/wgmma_wait<1>();//'
plant "tokens of the next expert stay" bf16_gradient.cu cores::bf16_gradient \
  's/if (end - token < BLOCK) clear_tokens.*//'
plant "zeros are not fenced" bf16_gradient.cu cores::bf16_gradient 's/fence_async();//'
plant "the other warpgroup's zeros" bf16_gradient.cu cores::bf16_gradient 's/named_barrier(1, 256);//'
plant "zeros of half the tokens" bf16_gradient.cu cores::bf16_gradient \
  's#(BLOCK - count) \* 128 / 4#(BLOCK - count) * 128 / 8#'
plant "zeros in dy only" bf16_gradient.cu cores::bf16_gradient 's/clear_tokens<S::BOXES>/clear_tokens<DY_BOXES>/'
plant "no tokens: sums are not cleared" bf16_gradient.cu cores::bf16_gradient 's/if (start == end) clear(sum);//'
plant "no tokens: a stage is released" bf16_gradient.cu cores::bf16_gradient \
  's/if (start < end \&\& lane == 0)/if (lane == 0)/'
plant "sums begin at zero in each stage" bf16_gradient.cu cores::bf16_gradient 's/token > start || i > 0/i > 0/'
plant "steps of 8 tokens" bf16_gradient.cu cores::bf16_gradient 's/later(b_tile, i \* 2048)/later(b_tile, i * 1024)/'

# ---- fp8_gemm.cu
plant "products do not wait for tiles" fp8_gemm.cu cores::fp8_gemm 's/mbarrier_wait(&full\[ring.stage\], ring.phase);//'
plant "copies do not wait for products" fp8_gemm.cu cores::fp8_gemm \
  's/mbarrier_wait(&empty\[ring.stage\], ring.phase ^ 1);//'
plant "a stage is released before its product" fp8_gemm.cu cores::fp8_gemm \
  's/wgmma_commit();/& if (lane == 0) mbarrier_arrive(\&empty[ring.stage]);/
   s/^        if (lane == 0) mbarrier_arrive.*//'
plant "sums are read before the product" fp8_gemm.cu cores::fp8_gemm 's/wgmma_wait<0>();//'
plant "parts do not begin at zero" fp8_gemm.cu cores::fp8_gemm \
  's/later(b_tile, i \* 32), i != 0)/later(b_tile, i * 32), 1)/'
plant "the scale of the row 4 further down" fp8_gemm.cu cores::fp8_gemm \
  's/row + 8 < m ? row + 8 :/row + 8 < m ? row + 4 :/'
plant "scales of rows beyond the last" fp8_gemm.cu cores::fp8_gemm 's/(row < m ? row : m - 1)/row/'
plant "a band of the first expert" fp8_gemm.cu cores::fp8_gemm 's/(i64)rows.expert \* bands + band)/(i64)band)/'
plant "bands begin with tiles" fp8_gemm.cu cores::fp8_gemm 's/(i == 1 \&\& !is_middle)/i == 1/'
plant "a band beyond the last" fp8_gemm.cu cores::fp8_gemm 's/WIDTH > TILE \&\& band + 1 < bands ?/WIDTH > TILE ?/'
plant "the far scale of the block before" fp8_gemm.cu cores::fp8_gemm \
  's/b_scales\[block + 1 + next_band\]/b_scales[block + next_band]/'
plant "the barrier expects another width" fp8_gemm.cu cores::fp8_gemm 's/\], S::STAGE);/], A_BYTES + 128 * BLOCK);/'

# ---- fp8_gradient.cu
plant "products do not wait for tokens" fp8_gradient.cu cores::fp8_gradient \
  's/mbarrier_wait(&full\[ring.stage\], ring.phase);//'
plant "scales do not wait for products" fp8_gradient.cu cores::fp8_gradient \
  '/float\* scales = (float\*)/,/of_dy.keep/ s/mbarrier_wait(.*//'
plant "scales arrive before all lanes wrote" fp8_gradient.cu cores::fp8_gradient \
  '/of_x.keep/,/arrive/ s/__syncwarp();//'
plant "a stage is released before all lanes read" fp8_gradient.cu cores::fp8_gradient \
  's/__syncwarp();  \/\/ all lanes.*//'
plant "one arrival fills a stage" fp8_gradient.cu cores::fp8_gradient 's/(full, empty, 2)/(full, empty, 1)/'
plant "the scales of the block before" fp8_gradient.cu cores::fp8_gradient \
  's/s_x + (i64)(block + 1) \* in/s_x + (i64)block * in/'
plant "scales beyond the last column" fp8_gradient.cu cores::fp8_gradient \
  's/first + lane + 32 \* i < count ?/first + lane < count ?/'
plant "scales of the first rows" fp8_gradient.cu cores::fp8_gradient \
  's/scales\[group \* 64 + accumulator_row() + 8\]/scales[accumulator_row() + 8]/'
plant "tokens, not blocks, of an expert" fp8_gradient.cu cores::fp8_gradient \
  's#int last = (int)tokens.before\[at.expert + 1\];#int last = (int)tokens.before[at.expert] + 1;#'

# ---- flash_forward.cu
plant "scores do not wait for keys" flash_forward.cu cores::flash \
  's/mbarrier_wait(&k_full\[ring.stage\], ring.phase);//'
plant "sums do not wait for values" flash_forward.cu cores::flash \
  's/mbarrier_wait(&v_full\[ring.stage\], ring.phase);//'
plant "scores do not wait for queries" flash_forward.cu cores::flash 's/mbarrier_wait(q_full, q_phase);//'
plant "queries are overwritten" flash_forward.cu cores::flash 's/mbarrier_wait(q_empty, q_phase ^ 1);//'
plant "values are overwritten" flash_forward.cu cores::flash \
  's/mbarrier_wait(&v_empty\[ring.stage\], ring.phase ^ 1);//'
plant "the phase of queries does not flip" flash_forward.cu cores::flash 's/, q_phase ^= 1)/)/'
plant "queries are not released" flash_forward.cu cores::flash 's/mbarrier_arrive(q_empty);//'
plant "values are released while they are read" flash_forward.cu cores::flash \
  's/&v_empty\[previous\]/\&v_empty[ring.stage]/'
plant "keys are released while they are read" flash_forward.cu cores::flash 's/wgmma_wait<0>();  \/\/ for these.*//'
plant "the key of the query itself is masked" flash_forward.cu cores::flash 's/column > (i \& 2/column >= (i \& 2/'
plant "the last tile of keys is not masked" flash_forward.cu cores::flash \
  's/key + KEYS > mine + 1)/key + KEYS > mine + 64)/'
plant "queries of other documents are not masked" flash_forward.cu cores::flash 's/!part.has_all(mine) || //'
plant "the upper row's document is the lower one's" flash_forward.cu cores::flash \
  's/part.has(own + 8) ? own + 8/part.has(own) ? own + 8/'
plant "sums of lower rows are not shrunk" flash_forward.cu cores::flash \
  's/sum\[i\] \*= i \& 2 ? shrink_high : shrink/sum[i] *= shrink/'
plant "the largest of two threads" flash_forward.cu cores::flash 's/.*__shfl_xor_sync(0xffffffff, most, 2));//'
plant "a score without a key is not 0" flash_forward.cu cores::flash \
  's/most == minus_infinity() ? 0 : most, scaled/most, scaled/'
plant "lse without the scale" flash_forward.cu cores::flash 's/low.largest \* scale + logf/low.largest + logf/'
plant "a document's end is the next one's first" flash_forward.cu cores::flash \
  's/limits\[row\] = rows.end;/limits[row] = rows.end - 1;/'
plant "keys of another head" flash_forward.cu cores::flash \
  's#kv_head = head / (heads / kv_heads)#kv_head = head % kv_heads#'

# ---- flash_backward.cu
plant "delta: of the row before" flash_backward.cu cores::flash \
  's/delta\[(i64)head \* n + row\] = sum/delta[(i64)row * heads + head] = sum/'
plant "keys: products do not wait" flash_backward.cu cores::flash \
  '/DEVICE void keys_side/,/^}/ s/mbarrier_wait(&full\[ring.stage\], ring.phase);//'
plant "keys: rows do not wait" flash_backward.cu cores::flash '/of_delta\[i\] = delta/,/pragma/ s/mbarrier_wait(.*//'
plant "keys: rows arrive before all lanes wrote" flash_backward.cu cores::flash 's/^              __syncwarp();//'
plant "keys: released under the second products" flash_backward.cu cores::flash \
  '/weigh<Q>(of_k, low_ds, stage)/,/wgmma_wait/ s/wgmma_wait<0>();//'
plant "keys: keys are overwritten" flash_backward.cu cores::flash 's/mbarrier_wait(kv_empty, kv_phase ^ 1);//'
plant "keys: earlier queries are not masked" flash_backward.cu cores::flash 's/query >= mine + 63 \&\&//'
plant "keys: the query of the key itself is masked" flash_backward.cu cores::flash \
  's/at < (i \& 2 ? since_high/at <= (i \& 2 ? since_high/'
plant "keys: queries of the next document" flash_backward.cu cores::flash 's/ || at >= part.limit)) prob/)) prob/'
plant "keys: ds beyond the document is not 0" flash_backward.cu cores::flash \
  's/!whole \&\& probability == 0 ? 0 : prob/prob/'
plant "keys: delta of another column" flash_backward.cu cores::flash 's/rows\[Q + column\])/rows[Q + column + 1])/'
plant "keys: heads begin at 0 again" flash_backward.cu cores::flash \
  's/head = kv_head \* repeat; head < (kv_head + 1) \* repeat/head = 0; head < repeat/'
plant "keys: dk without the scale" flash_backward.cu cores::flash 's/end, scale, scale);/end, 1, 1);/'
plant "keys: sums do not begin at 0" flash_backward.cu cores::flash 's/clear(of_v);//'
plant "queries: products do not wait" flash_backward.cu cores::flash \
  '/DEVICE void queries_side/,/^}/ s/mbarrier_wait(&full\[ring.stage\], ring.phase);//'
plant "queries: keys are overwritten" flash_backward.cu cores::flash \
  '/DEVICE void queries_side/,/^}/ s/mbarrier_wait(&empty\[ring.stage\], ring.phase ^ 1);//'
plant "queries: the last tile is not masked" flash_backward.cu cores::flash 's/all \&\& key + B <= mine + 1;/all;/'
plant "queries: delta of the lower row" flash_backward.cu cores::flash 's/i \& 2 ? delta_high : delta_low/delta_low/'
plant "queries: the barrier expects another count" flash_backward.cu cores::flash \
  's/mbarrier_expect(q_full, S::KEYS)/mbarrier_expect(q_full, S::D_O)/'

# ---- attention.cuh
plant "copies: one box over the other" attention.cuh cores::flash \
  's/copy_tile_3d(to + i \* bytes_of(rows, 64), /copy_tile_3d(to, /'
plant "scores: the next columns of the other tile" attention.cuh cores::flash \
  's#i / 4 \* bytes_of(B_ROWS, 64)#i / 4 * bytes_of(A_ROWS, 64)#'
plant "part: reaches into the next document" attention.cuh cores::flash \
  's/last = limit < tile_end ? limit : tile_end/last = tile_end/'
plant "part: all of 64 rows but the last" attention.cuh cores::flash 's/row + 64 <= last; }/row + 63 <= last; }/'
plant "rows: one too many is stored" attention.cuh cores::flash \
  's/if (row + 8 \* half >= end) continue;/if (row + 8 * half > end) continue;/'

if [ ${#names[@]} = 0 ]; then echo "error: no bug is called \`$wanted\`" >&2; exit 2; fi

# ---- the checks
uses() { [[ " ${checks[*]}" == *" $1::"* ]]; }
built() {
  (cd "$here" && cargo test --release -p smelt-kernels --test "$1" --no-run --message-format=json) |
    grep -o '"executable":"[^"]*"' | tail -1 | cut -d '"' -f 4
}
if uses gpu || uses old; then reference=$(realpath "${REFERENCE:-$(built reference)}"); fi
if uses tensor; then tensor_cores=$(realpath "${CORES:-$(built tensor_cores)}"); fi

# Builds the kernels that a test of cores.cpp launches, with the files of a folder in place of their own.
build_cores() {
  local folder=$1 part=$2 kernels=$2 kernel
  if [[ $part == flash* ]]; then kernels="flash_forward flash_backward"; fi
  for kernel in $kernels; do
    if [ ! -e "$folder/$kernel.cu" ]; then cp "$cu/$kernel.cu" "$folder/"; fi
  done
  "$here/build.sh" --only "$work/simulator" "$folder" || return
  if [ -e "$work/simulator/cores" ]; then return; fi
  "${CXX:-g++}" -std=gnu++17 -O2 -Wno-psabi "$here/check/cores.cpp" "$work/simulator/libcuda.so.1" \
    -Wl,-rpath,"$work/simulator" -o "$work/simulator/cores"
}

# Runs a check with the files of a folder.
check() {
  local folder=$1 kind=${2%%::*} name=${2#*::} kernel
  if [ $kind != cores ]; then  # a test program may have been built from another tree
    for kernel in "$cu"/*; do
      if [ ! -e "$folder/${kernel##*/}" ]; then cp "$kernel" "$folder/"; fi
    done
  fi
  case $kind in
    gpu) SMELT_SIM_SOURCES=$folder timeout "$limit" "$reference" --exact "gpu::$name" --test-threads=1 ;;
    old) SMELT_SIM_SOURCES=$folder SMELT_SIM_CAPABILITY=80 timeout "$limit" "$reference" --exact "gpu::$name" ;;
    tensor) SMELT_SIM_SOURCES=$folder timeout "$limit" "$tensor_cores" --exact "$name" ;;
    cores)
      build_cores "$folder" "$name" || { echo "the simulator is not built"; return 1; }
      timeout "$limit" "$work/simulator/cores" "$name"
      ;;
  esac
}

# The line that tells what went wrong.
said() {
  grep -a -m1 -oE 'simulator: .*' "$1" || grep -a -m1 -A1 'panicked at' "$1" | tail -n +2 | grep . || tail -n 1 "$1"
}

# ---- without a bug all of them pass
log="$work/log"
mkdir "$work/clean"
cp "$cu"/* "$work/clean/"
for one in $(printf '%s\n' ${checks[*]} | sort -u); do
  if check "$work/clean" "$one" >"$log" 2>&1 && ! grep -q '^running 0 tests' "$log"; then continue; fi
  echo "without a bug $one fails: $(said "$log")" >&2
  exit 1
done

caught=0
missed=0
for i in "${!names[@]}"; do
  folder="$work/$i"
  file=${files[$i]}
  mkdir "$folder"
  sed "${edits[$i]}" "$cu/$file" >"$folder/$file"
  result="NOT CAUGHT"
  if cmp -s "$cu/$file" "$folder/$file"; then
    result="DOES NOT APPLY"
  else
    for one in ${checks[$i]}; do
      status=0
      check "$folder" "$one" >"$log" 2>&1 || status=$?
      if grep -q 'the simulator is not built' "$log"; then
        result="DOES NOT COMPILE: $(grep -m1 'error:' "$log" || true)"
        break
      elif [ $status = 124 ]; then
        result="caught by $one: it hangs"
      elif [ $status != 0 ]; then
        result="caught by $one: $(said "$log")"
      fi
      if [ $status != 0 ]; then break; fi
    done
  fi
  case $result in
    caught*) caught=$((caught + 1)) ;;
    *) missed=$((missed + 1)) ;;
  esac
  echo "$file: ${names[$i]}: ${result:0:240}"
  rm -rf "$folder"
done
echo "$caught caught, $missed not"
[ $missed = 0 ]
