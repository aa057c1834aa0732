// The Python package's libraries run on every Linux with glibc 2.28 or later, whatever they were built on. What a later
// glibc would bind them to is defined here, hidden: within the library these definitions come first.
// distribution/audit.py looks at what a library binds.
#include <cstdlib>  // says whether this is glibc

#if defined(__linux__) && defined(__x86_64__) && defined(__GLIBC__)

extern "C" {

// glibc 2.29 gave exp a second version, which leaves the error handling of SVID out. The first one is in all of them.
double adapterx_exp_of_glibc_2_2_5(double x);
__asm__(".symver adapterx_exp_of_glibc_2_2_5, exp@GLIBC_2.2.5");
__attribute__((visibility("hidden"))) double exp(double x) { return adapterx_exp_of_glibc_2_2_5(x); }

// glibc 2.32 tells libstdc++ whether reference counts may do without atomics. They never do here.
extern __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
}

#endif
