#include "check.h"

int main() {
  using namespace check;
  char text[256] = "";
  const Error error = kernels().describe(0, text, sizeof text);
  std::fprintf(stderr, "version %lld, device: %s\n", static_cast<long long>(kernels().version), error ? error : text);
  expect("version", kernels().version == kVersion, "differs");
#ifdef COXSWAIN_ON_GPU
  expect_done("describe", error);
#else
  kernels().error(); // forgets that there is no device
#endif
  norms();
  elementwise();
  loss();
  embed();
#ifdef COXSWAIN_ON_GPU
  expect_done("error", kernels().error());
#endif
  std::fprintf(stderr, "%d checks, %d failed\n", checks, failures);
  return failures > 0;
}
