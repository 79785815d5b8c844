#include "blas.h"

#include <Python.h>

#include <cstdint>

#ifdef _WIN32
#include <windows.h>

#include <filesystem>
#else
#include <dlfcn.h>
#endif

namespace softgrad {

namespace {

struct Library {
  int (*get)() = nullptr;
  void (*set)(int64_t) = nullptr;  // some take an int, some 64 bits
  bool per_thread = false;
};

std::array<Library, most_blas_libraries> libraries;
std::array<int, most_blas_libraries> before;  // the limits to restore, where `limited`
int count = 0, users = 0;
bool limited = false;  // also in the child of a fork in which there are no users any more: it has not been restored yet
Py_tss_t users_here = Py_tss_NEEDS_INIT;  // the users in this thread; not `thread_local`, see pool.cpp

intptr_t count_here() { return reinterpret_cast<intptr_t>(PyThread_tss_get(&users_here)); }
void add_here(int change) { PyThread_tss_set(&users_here, reinterpret_cast<void*>(count_here() + change)); }

#ifdef _WIN32
HMODULE loaded(const std::string& path) { return GetModuleHandleW(std::filesystem::u8path(path).c_str()); }
void* symbol(HMODULE library, const std::string& name) {
  return reinterpret_cast<void*>(GetProcAddress(library, name.c_str()));
}
#else
void* loaded(const std::string& path) { return path.empty() ? nullptr : dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD); }
void* symbol(void* library, const std::string& name) { return dlsym(library, name.c_str()); }
#endif

template <class Handle> bool find(Handle handle, const std::string& get, const std::string& set, Library& library) {
  library.get = reinterpret_cast<int (*)()>(symbol(handle, get));
  library.set = reinterpret_cast<void (*)(int64_t)>(symbol(handle, set));
  return library.get && library.set;
}

template <class Handle> bool find_openblas(Handle handle, Library& library) {
  for (const char* prefix : {"", "scipy_"})
    for (const char* suffix : {"", "64_", "_64"}) {
      const auto name = [&](const char* middle) { return std::string(prefix) + middle + suffix; };
      if (!find(handle, name("openblas_get_num_threads"), name("openblas_set_num_threads"), library)) continue;
      const auto layer = reinterpret_cast<int (*)()>(symbol(handle, name("openblas_get_parallel")));
      if (layer && layer() == 2) library.per_thread = find(handle, "omp_get_max_threads", "omp_set_num_threads", library);
      return library.get && library.set;
    }
  return false;
}

}  // namespace

bool init_blas() { return PyThread_tss_create(&users_here) == 0; }

bool add_blas_library(const std::string& path) {
  const auto handle = loaded(path);
  if (!handle || count == most_blas_libraries) return false;
  Library library;
  if (!find_openblas(handle, library) && !find(handle, "MKL_Get_Max_Threads", "MKL_Set_Num_Threads", library) &&
      !find(handle, "bli_thread_get_num_threads", "bli_thread_set_num_threads", library) &&
      !find(handle, "flexiblas_get_num_threads", "flexiblas_set_num_threads", library))
    return false;
  for (int i = 0; i < count; ++i)
    if (libraries[i].set == library.set) return true;
  if (limited && !library.per_thread) {
    before[count] = library.get();
    library.set(1);
  }
  libraries[count++] = library;
  return true;
}

void SingleThreadedBlas::enter() {
  if (held_) return;
  held_ = true;
  thread_ = std::this_thread::get_id();
  ++users, add_here(1);
  for (int i = 0; i < count; ++i) {
    const Library& library = libraries[i];
    if (!library.per_thread && limited) continue;
    (library.per_thread ? own_ : before)[i] = library.get();
    library.set(1);
  }
  limited = true;
}

void SingleThreadedBlas::leave() {
  if (!held_) return;
  held_ = false;
  const bool here = thread_ == std::this_thread::get_id();
  if (here) add_here(-1);
  if (users > 0) --users;
  for (int i = 0; i < count; ++i) {
    const Library& library = libraries[i];
    if (library.per_thread ? here : limited && users == 0) library.set((library.per_thread ? own_ : before)[i]);
  }
  if (users == 0) limited = false;
}

void reset_blas() {
  for (int i = 0; i < count; ++i) libraries[i].set(libraries[i].get());
}

void limit_blas_in_worker() {
  for (int i = 0; users > 0 && i < count; ++i)
    if (libraries[i].per_thread) libraries[i].set(1);
}

void forget_blas_users_of_other_threads() { users = static_cast<int>(count_here()); }

}  // namespace softgrad
