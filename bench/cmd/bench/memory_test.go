package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMemoryOf(t *testing.T) {
	used, err := syscall.Mmap(-1, 0, 64<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Munmap(used)) })
	before, err := memoryOf(os.Getpid())
	require.NoError(t, err)
	for i := range used {
		used[i] = byte(i)
	}
	after, err := memoryOf(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, after-before, int64(60<<20), "memory that is used is not counted")
	require.EqualValues(t, 200, used[200])
	_, err = memoryOf(0)
	require.Error(t, err)
}

func TestParsePss(t *testing.T) {
	pss, err := parsePss("55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:      2000 kB\nPss:      1000 kB\nPss_Anon:      10 kB\n")
	require.NoError(t, err)
	require.EqualValues(t, 1000<<10, pss)
	for _, text := range []string{"", "Rss: 1 kB\n", "Pss: many kB\n", "Pss: 1000\n"} {
		_, err := parsePss(text)
		require.Error(t, err, "%q", text)
	}
}

func TestMetric(t *testing.T) {
	value, err := metric("# TYPE go_goroutines gauge\ngo_goroutines 12\ngo_memstats_heap_alloc_bytes 1.5e+06\n", "go_memstats_heap_alloc_bytes")
	require.NoError(t, err)
	require.EqualValues(t, 1_500_000, value)
	_, err = metric("go_goroutines_more 12\n", "go_goroutines")
	require.Error(t, err)
}

// kept is what a profile finds.
type kept struct{ bytes [][]byte }

func (k *kept) more() {
	for range 64 {
		k.bytes = append(k.bytes, make([]byte, 1<<20))
	}
}

func TestAllocations(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("there is no go to read profiles with")
	}
	dir := t.TempDir()
	write := func(name string) string {
		path := filepath.Join(dir, name)
		file, err := os.Create(path)
		require.NoError(t, err)
		defer file.Close()
		require.NoError(t, pprof.Lookup("heap").WriteTo(file, 0))
		return path
	}
	k := &kept{}
	k.more()
	runtime.GC()
	before := write("before")
	k.more()
	runtime.GC()
	found, err := allocations(t.Context(), before, write("after"), 5)
	require.NoError(t, err)
	require.Contains(t, found[0].function, "(*kept).more")
	require.InEpsilon(t, 64<<20, found[0].bytes, 0.4) // it is a sample
	require.Len(t, k.bytes, 128)

	_, err = parseTop("Showing nodes accounting for 0, 0% of 0 total\n")
	require.Error(t, err)
}
