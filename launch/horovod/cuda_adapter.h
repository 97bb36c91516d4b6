// Stands in for XLA's client/xla_builder.h, which Horovod 0.28.1 includes in xla_mpi_ops.cc only, and
// which TensorFlow 2.21 no longer has. Mends what else keeps a build for GPUs from working.

#if HAVE_CUDA
#include <cuda_runtime.h>

#include "xla/stream_executor/stream.h"

// mpi_ops.cc declares and calls this function, which TensorFlow has removed.
namespace stream_executor {
namespace gpu {

cudaStream_t AsGpuStreamValue(Stream* stream) {
  return static_cast<cudaStream_t>(stream->platform_specific_handle().stream);
}

}  // namespace gpu
}  // namespace stream_executor
#endif

// xla_mpi_ops.cc registers operations with an interface that XLA no longer has. Without GPUs, the rest
// of that file is empty. Ranks exchange gradients outside of what XLA compiles, so nothing needs it.
#undef HAVE_GPU
