/* One workspace, cut into arrays. The code that cuts it also measures it: an arena without memory only counts bytes. */
#pragma once
#include "base.h"

namespace {

constexpr index_t CACHE_LINE = 64;

template <typename T> struct Array {
    T *data;
    index_t size;

    INLINE operator T *() const { return data; }
    void clear() const { memset(data, 0, size * sizeof(T)); }
};

class Arena {
public:
    explicit Arena(void *memory) : memory_(static_cast<char *>(memory)) {}

    /* Return the next `size` values, from a cache line on; no memory if there is none. */
    template <typename T> Array<T> take(index_t size)
    {
        Array<T> array = {memory_ ? reinterpret_cast<T *>(memory_ + used_) : nullptr, size};
        used_ += round_up(size * static_cast<index_t>(sizeof(T)), CACHE_LINE);
        return array;
    }

    bool measures() const { return !memory_; }
    index_t bytes() const { return used_; }

private:
    char *memory_;
    index_t used_ = 0;
};

/* As many equal parts of a workspace as there are threads: each thread binds `Buffers` to its own. */
template <class Buffers> class PerThread {
public:
    template <typename... Arguments> PerThread(Arena &arena, index_t threads, const Arguments &...arguments)
    {
        Arena measure(nullptr);
        Buffers buffers(measure, arguments...);
        bytes_ = measure.bytes();
        parts_ = arena.take<char>(threads * bytes_);
    }

    Arena part(index_t thread) const { return Arena(parts_.data + thread * bytes_); }

private:
    index_t bytes_;
    Array<char> parts_;
};

} // namespace
