package player

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

func playAt(at time.Time) Play {
	return Play{ID: ulid.MustNew(ulid.Timestamp(at), rand.Reader).String(), CreativeID: "spring-sale", DurationMS: 10_000}
}

func plays(n int) (all []Play) {
	for range n {
		all = append(all, playAt(time.Now()))
	}
	return all
}

// reopened is a journal of what is on the disk now.
func reopened(t *testing.T, path string) *Journal {
	t.Helper()
	j, _, err := OpenJournal(path, math.MaxInt64)
	require.NoError(t, err)
	t.Cleanup(func() { j.Close() })
	return j
}

func next(t *testing.T, j *Journal, most int) ([]Play, int64) {
	t.Helper()
	found, upTo, err := j.Next(most, math.MaxInt)
	require.NoError(t, err)
	return found, upTo
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plays")
	j := reopened(t, path)
	all := plays(450)
	for _, p := range all {
		_, err := j.Append(p)
		require.NoError(t, err)
	}
	for at := 0; at < len(all); {
		require.EqualValues(t, len(all)-at, j.Unsent())
		batch, upTo := next(t, j, 200)
		require.Equal(t, all[at:min(at+200, len(all))], batch)
		again, _ := next(t, reopened(t, path), 200)
		require.Equal(t, batch, again, "what is not acknowledged is there after a restart")
		require.NoError(t, j.Acknowledge(upTo))
		require.NoError(t, j.Acknowledge(upTo), "twice")
		at += len(batch)
		require.EqualValues(t, len(all)-at, reopened(t, path).Unsent())
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Zero(t, info.Size(), "nothing is kept of what was acknowledged")

	t.Run("Bytes", func(t *testing.T) {
		_, err := j.Append(all[:5]...)
		require.NoError(t, err)
		found, upTo, err := j.Next(200, 1)
		require.NoError(t, err)
		require.Equal(t, all[:1], found, "one is always handed in")
		require.NoError(t, j.Acknowledge(upTo))
		found, _, err = j.Next(200, 250)
		require.NoError(t, err)
		require.Equal(t, all[1:3], found)
	})

	t.Run("Expired", func(t *testing.T) {
		j := reopened(t, filepath.Join(t.TempDir(), "plays"))
		young := playAt(time.Now())
		_, err := j.Append(playAt(time.Now().AddDate(0, 0, -40)), playAt(time.Now().AddDate(0, 0, -31)), young)
		require.NoError(t, err)
		gone, err := j.Expire(time.Now().Add(-playsTaken))
		require.NoError(t, err)
		require.EqualValues(t, 2, gone)
		left, _ := next(t, j, 200)
		require.Equal(t, []Play{young}, left)
	})

	t.Run("Compacted", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "plays")
		j := reopened(t, path)
		all := plays(10_000)
		_, err := j.Append(all...)
		require.NoError(t, err)
		full, err := os.Stat(path)
		require.NoError(t, err)
		for at := 0; at < 9_000; at += 200 {
			batch, upTo := next(t, j, 200)
			require.Equal(t, all[at:at+200], batch)
			require.NoError(t, j.Acknowledge(upTo))
		}
		one := playAt(time.Now())
		_, err = j.Append(one)
		require.NoError(t, err)
		compacted, err := os.Stat(path)
		require.NoError(t, err)
		require.Less(t, compacted.Size(), full.Size()/2)
		left, _ := next(t, reopened(t, path), 10_000)
		require.Equal(t, append(all[9_000:], one), left)
	})

	t.Run("Limit", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "plays")
		j, _, err := OpenJournal(path, 10_000)
		require.NoError(t, err)
		defer j.Close()
		all := plays(500)
		var dropped int64
		for _, p := range all {
			gone, err := j.Append(p)
			require.NoError(t, err)
			dropped += gone
		}
		require.Positive(t, dropped)
		left, _ := next(t, reopened(t, path), 500)
		require.Equal(t, all[dropped:], left, "the newest stay")
		require.Greater(t, len(left), 50)
		// A batch that was under way when its plays were dropped takes no others with it.
		_, upTo := next(t, j, 10)
		_, err = j.Append(plays(80)...)
		require.NoError(t, err)
		before := j.Unsent()
		require.NoError(t, j.Acknowledge(upTo))
		require.Equal(t, before, j.Unsent())
	})
}

// TestTornJournal cuts a journal off at each byte of its last records, and breaks each
// byte of them.
func TestTornJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plays")
	j := reopened(t, path)
	all := plays(3)
	var ends []int64
	for _, p := range all {
		_, err := j.Append(p)
		require.NoError(t, err)
		ends = append(ends, j.end)
	}
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	try := func(content []byte, want int, wantCut int64) {
		require.NoError(t, os.WriteFile(path, content, 0o600))
		j, cut, err := OpenJournal(path, math.MaxInt64)
		require.NoError(t, err)
		defer j.Close()
		require.Equal(t, wantCut, cut)
		found, _ := next(t, j, 10)
		require.Len(t, found, want)
		for n := range found {
			require.Equal(t, all[n], found[n])
		}
		// It goes on behind what was whole.
		one := playAt(time.Now())
		_, err = j.Append(one)
		require.NoError(t, err)
		found, _ = next(t, reopened(t, path), 10)
		require.Len(t, found, want+1)
		require.Equal(t, one, found[want])
	}
	for size := ends[0]; size < ends[2]; size++ {
		kept, end := 1, ends[0]
		if size >= ends[1] {
			kept, end = 2, ends[1]
		}
		try(whole[:size], kept, size-end)
	}
	for at := ends[1]; at < ends[2]; at++ {
		broken := bytes.Clone(whole)
		broken[at] ^= 0x40
		try(broken, 2, ends[2]-ends[1])
	}
	try(append(bytes.Clone(whole), make([]byte, 5000)...), 3, 5000)
}

// fullDisk is a file on a disk that takes so many more bytes.
type fullDisk struct {
	*os.File
	room *int
}

func (f fullDisk) WriteAt(b []byte, at int64) (int, error) {
	n, err := f.File.WriteAt(b[:min(len(b), *f.room)], at)
	*f.room -= n
	if err == nil && n < len(b) {
		err = syscall.ENOSPC
	}
	return n, err
}

func onFullDisk(t *testing.T, path string, limit int64, room *int) *Journal {
	t.Helper()
	j, _, err := openJournal(path, limit, func(path string, flag int) (file, error) {
		f, err := os.OpenFile(path, flag, 0o600)
		return fullDisk{f, room}, err
	})
	require.NoError(t, err)
	t.Cleanup(func() { j.Close() })
	return j
}

// TestFullDisk: what a full disk does not take leaves no trace, and what is
// acknowledged makes room.
func TestFullDisk(t *testing.T) {
	for room := range 250 {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			left := room
			path := filepath.Join(t.TempDir(), "plays")
			j := onFullDisk(t, path, math.MaxInt64, &left)
			all := plays(4)
			var written []Play
			for _, p := range all {
				if _, err := j.Append(p); err == nil {
					written = append(written, p)
				} else {
					require.ErrorIs(t, err, syscall.ENOSPC)
				}
			}
			require.Less(t, len(written), len(all))
			found, _ := next(t, reopened(t, path), 10)
			require.Equal(t, written, found)
			found, upTo := next(t, j, 10)
			require.Equal(t, written, found)
			require.NoError(t, j.Acknowledge(upTo), "nothing is written to empty it")
			left = 1000
			_, err := j.Append(all[3])
			require.NoError(t, err)
			found, _ = next(t, reopened(t, path), 10)
			require.Equal(t, all[3:], found)
		})
	}
}

// FuzzJournal: whatever a file holds, it can be opened, and written to.
func FuzzJournal(f *testing.F) {
	line, err := appendRecord(nil, playAt(time.Now()))
	require.NoError(f, err)
	head, err := appendRecord(nil, map[string]int64{"head": int64(len(line))})
	require.NoError(f, err)
	f.Add(append(bytes.Clone(line), head...))
	f.Add([]byte("00000000 \n"))
	f.Add(bytes.Repeat([]byte{0}, 8192))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "plays")
		require.NoError(t, os.WriteFile(path, content, 0o600))
		j, _, err := OpenJournal(path, math.MaxInt64)
		require.NoError(t, err)
		defer j.Close()
		one := playAt(time.Now())
		before := j.Unsent()
		_, err = j.Append(one)
		require.NoError(t, err)
		again := reopened(t, path)
		require.Equal(t, before+1, again.Unsent())
		found, _ := next(t, again, math.MaxInt)
		require.Equal(t, one, found[len(found)-1])
	})
}

// guarded is a disk whose room changes while it is written to.
type guarded struct {
	fullDisk
	mu *sync.Mutex
}

func (g guarded) WriteAt(b []byte, at int64) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.fullDisk.WriteAt(b, at)
}

func onGuardedDisk(path string, flag int, mu *sync.Mutex, room *int) (file, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	return guarded{fullDisk{f, room}, mu}, err
}
