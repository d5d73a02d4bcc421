// Working memory of a thread, kept between calls, and the threads themselves.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

constexpr int MAX_LAYERS = 16;  // of a network: what arrays here have room for

// Hands out pieces of one block; without a block it only counts.
class Space {
   public:
    explicit Space(char* block = nullptr) : block_(block) {}

    template <class T>
    T* take(int64_t count) {
        char* piece = block_ ? block_ + used_ : nullptr;
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return reinterpret_cast<T*>(piece);
    }

    int64_t used() const { return used_; }

   private:
    char* block_;
    int64_t used_ = 0;
};

// A block that grows, and is only given back when it is large.
class Block {
   public:
    Block() = default;
    Block(Block&& other) noexcept : data_(other.data_), size_(other.size_) {
        other.data_ = nullptr;
        other.size_ = 0;
    }
    ~Block() { std::free(data_); }

    char* at_least(int64_t bytes) {
        if (bytes > size_) {
            std::free(data_);
            size_ = 0;
            data_ = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
            if (!data_) throw std::bad_alloc();
            size_ = bytes;
        }
        return data_;
    }

    void done() {
        if (size_ <= KEPT) return;
        std::free(data_);
        data_ = nullptr;
        size_ = 0;
    }

   private:
    static constexpr int64_t KEPT = 16 << 20;
    char* data_ = nullptr;
    int64_t size_ = 0;
};

// What lay_out takes from a space, in a block, zeroed if asked for.
template <class LayOut>
void in_block(Block& block, LayOut lay_out, bool zeroed = false) {
    Space counted;
    lay_out(counted);
    char* memory = block.at_least(counted.used());
    if (zeroed) std::memset(memory, 0, counted.used());
    Space space(memory);
    lay_out(space);
}

// A block for each thread that the present one starts.
inline std::vector<Block>& blocks_for(int threads) {
    static thread_local std::vector<Block> blocks;
    if (int(blocks.size()) < threads) blocks.resize(threads);
    return blocks;
}

// work(0) ... work(threads - 1), at the same time; false if memory ran out.
template <class Work>
bool in_parallel(int threads, Work work) {
    bool failed = false;
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int i = omp_get_thread_num(); i < threads; i += omp_get_num_threads())
#else
    for (int i = 0; i < threads; i++)
#endif
    {
        try {
            work(i);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    }
    return !failed;
}
