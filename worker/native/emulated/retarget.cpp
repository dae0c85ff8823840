// Copies a library of libtorch so that it asks for another runtime: retarget FROM TO OLD NEW
//
// OLD and NEW are sonames of one length. libtorch_cpu.so needs libcudart.so.13, so every worker has NVIDIA's runtime in
// its global scope before anything is opened, and a second library of that name would be ignored. The copy needs NEW
// instead, and wants NEW's version of each symbol, which no other library can supply. GPU code is left out: its
// section is a hole in the copy, which saves 300 MB.
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

[[noreturn]] void fail(const char* what, const char* path) {
  std::fprintf(stderr, "retarget: %s: %s\n", path, what);
  std::exit(1);
}

uint32_t version_hash(const char* name) {
  uint32_t hash = 0;
  for (; *name != 0; ++name) {
    hash = (hash << 4) + static_cast<unsigned char>(*name);
    hash ^= (hash & 0xf0000000) >> 24;
    hash &= 0x0fffffff;
  }
  return hash;
}

void write(int file, const char* bytes, size_t from, size_t to, const char* path) {
  while (from < to) {
    const ssize_t count = pwrite(file, bytes + from, to - from, static_cast<off_t>(from));
    if (count <= 0) fail("could not be written", path);
    from += static_cast<size_t>(count);
  }
}

} // namespace

int main(int count, char** arguments) {
  if (count != 5) fail("takes FROM TO OLD NEW", "usage");
  const char *from = arguments[1], *to = arguments[2], *old_name = arguments[3], *new_name = arguments[4];
  const size_t length = std::strlen(old_name);
  if (length != std::strlen(new_name)) fail("the names differ in length", from);

  const int input = open(from, O_RDONLY);
  struct stat about {};
  if (input < 0 || fstat(input, &about) != 0) fail("could not be opened", from);
  const size_t size = static_cast<size_t>(about.st_size);
  // Private: changes stay in memory.
  char* bytes = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, input, 0));
  if (bytes == MAP_FAILED) fail("could not be mapped", from);

  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(bytes);
  if (size < sizeof *header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0) fail("is not an ELF file", from);
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(bytes + header->e_shoff);
  const char* section_names = bytes + sections[header->e_shstrndx].sh_offset;
  const Elf64_Shdr *needs = nullptr, *gpu_code = nullptr;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type == SHT_GNU_verneed) needs = &sections[i];
    if (std::strcmp(section_names + sections[i].sh_name, ".nv_fatbin") == 0) gpu_code = &sections[i];
  }
  if (needs == nullptr) fail("wants no versions of symbols", from);

  // One string is both the library's name and the version's.
  const Elf64_Shdr& strings = sections[needs->sh_link];
  char *begin = bytes + strings.sh_offset, *end = begin + strings.sh_size;
  int found = 0;
  for (char* at = begin; (at = std::search(at, end, old_name, old_name + length + 1)) != end; at += length) {
    if (at[-1] != 0) fail("has a longer name that ends in the old one", from);
    std::memcpy(at, new_name, length);
    ++found;
  }
  if (found != 1) fail("does not name the old library once", from);

  for (auto* need = reinterpret_cast<Elf64_Verneed*>(bytes + needs->sh_offset);;) {
    auto* version = reinterpret_cast<Elf64_Vernaux*>(reinterpret_cast<char*>(need) + need->vn_aux);
    for (int i = 0; i < need->vn_cnt; ++i) {
      const char* name = begin + version->vna_name;
      if (std::strcmp(name, new_name) == 0) version->vna_hash = version_hash(name);
      version = reinterpret_cast<Elf64_Vernaux*>(reinterpret_cast<char*>(version) + version->vna_next);
    }
    if (need->vn_next == 0) break;
    need = reinterpret_cast<Elf64_Verneed*>(reinterpret_cast<char*>(need) + need->vn_next);
  }

  unlink(to);
  const int output = open(to, O_WRONLY | O_CREAT | O_EXCL, 0755);
  if (output < 0 || ftruncate(output, about.st_size) != 0) fail("could not be made", to);
  const size_t hole = gpu_code != nullptr ? gpu_code->sh_offset : size;
  const size_t after = gpu_code != nullptr ? hole + gpu_code->sh_size : size;
  write(output, bytes, 0, hole, to);
  write(output, bytes, after, size, to);
  if (close(output) != 0) fail("could not be written", to);
}
