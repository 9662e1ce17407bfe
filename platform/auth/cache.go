package auth

import (
	"hash/maphash"
	"sync"
)

// cacheEntries bounds the memory of the cache to about 8 MB of tokens.
const cacheEntries = 16384

// cacheShards keeps callers on different cores out of each other's way.
const cacheShards = 16

// cache remembers tokens whose signature was verified. Checking an Ed25519
// signature costs about 50 us, as much as a whole cheap call; a client sends
// the same token for minutes. Each shard holds two generations: a hit in the
// old one moves to the young one, and a full young one becomes the old.
type cache struct {
	seed   maphash.Seed
	size   int
	shards [cacheShards]shard
}

type shard struct {
	mu         sync.Mutex
	young, old map[string]verified
}

func newCache(entries int) *cache {
	return &cache{seed: maphash.MakeSeed(), size: max(1, entries/cacheShards/2)}
}

func (c *cache) shard(token string) *shard {
	return &c.shards[maphash.String(c.seed, token)%cacheShards]
}

func (c *cache) get(token string) (verified, bool) {
	s := c.shard(token)
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, ok := s.young[token]; ok {
		return v, true
	}
	v, ok := s.old[token]
	if ok {
		s.add(token, v, c.size)
	}
	return v, ok
}

func (c *cache) put(token string, v verified) {
	s := c.shard(token)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.add(token, v, c.size)
}

func (s *shard) add(token string, v verified, size int) {
	if s.young == nil || len(s.young) >= size {
		s.old, s.young = s.young, make(map[string]verified, min(size, 64))
	}
	s.young[token] = v
}
