package artifacts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// store keeps artifacts in a folder, as <sha256>/<name>. What has its name there
// is whole and has that SHA-256.
type store struct {
	dir   string
	limit int64
}

const partial = ".partial-"

// openStore makes the folder, and removes what an interrupted program left.
func openStore(dir string, limit int64) (*store, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of artifacts: %w", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, partial+"*"))
	if err != nil {
		return nil, err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove what was not finished: %w", err)
		}
	}
	return &store{dir: dir, limit: limit}, nil
}

func (s *store) path(a artifact) string { return filepath.Join(s.dir, a.sum, a.name) }

// open opens an artifact; fs.ErrNotExist when it is not there.
func (s *store) open(a artifact) (*os.File, error) { return os.Open(s.path(a)) }

// add takes in contents; what has another SHA-256, is too large or breaks off
// leaves nothing. Several may add the same at once.
func (s *store) add(a artifact, contents io.Reader) (err error) {
	temp, err := os.CreateTemp(s.dir, partial)
	if err != nil {
		return fmt.Errorf("store %s: %w", a.name, err)
	}
	defer func() {
		if err != nil {
			temp.Close()
			os.Remove(temp.Name())
		}
	}()
	hash := sha256.New()
	// One byte more, to notice that there is more.
	size, err := io.Copy(io.MultiWriter(temp, hash), io.LimitReader(contents, s.limit+1))
	switch {
	case err != nil:
		return fmt.Errorf("store %s: %w", a.name, err)
	case size > s.limit:
		return fmt.Errorf("store %s: %w: at most %d bytes", a.name, ErrTooLarge, s.limit)
	case hex.EncodeToString(hash.Sum(nil)) != a.sum:
		return fmt.Errorf("store %s: %w: they have %x", a.name, ErrMismatch, hash.Sum(nil))
	}
	for _, finish := range []func() error{
		func() error { return temp.Chmod(0o755) },
		temp.Sync,
		temp.Close,
		func() error { return os.MkdirAll(filepath.Dir(s.path(a)), 0o755) },
		func() error { return os.Rename(temp.Name(), s.path(a)) },
	} {
		if err := finish(); err != nil {
			return fmt.Errorf("store %s: %w", a.name, err)
		}
	}
	return nil
}

// kept is an artifact in a store.
type kept struct {
	artifact
	size int64
	used time.Time // when it was added or asked for last
}

// list is what there is, that which was asked for longest ago first.
func (s *store) list() ([]kept, error) {
	paths, err := filepath.Glob(filepath.Join(s.dir, "[0-9a-f]*", "*"))
	if err != nil {
		return nil, err
	}
	var all []kept
	for _, path := range paths {
		a, err := newArtifact(filepath.Base(filepath.Dir(path)), filepath.Base(path))
		if err != nil {
			continue // nothing of ours
		}
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("look for old artifacts: %w", err)
		}
		all = append(all, kept{a, info.Size(), info.ModTime()})
	}
	slices.SortFunc(all, func(a, b kept) int { return a.used.Compare(b.used) })
	return all, nil
}

// trim removes the artifacts that were asked for longest ago, until those that
// are left have at most keep bytes. The one that is named stays.
func (s *store) trim(keep int64, but artifact) error {
	all, err := s.list()
	if err != nil {
		return err
	}
	var size int64
	for _, a := range all {
		size += a.size
	}
	for _, a := range all {
		if size <= keep {
			return nil
		}
		if a.artifact == but {
			continue
		}
		if err := s.remove(a.artifact); err != nil {
			return err
		}
		size -= a.size
	}
	return nil
}

// use notes that an artifact is still asked for.
func (s *store) use(a artifact, now time.Time) { _ = os.Chtimes(s.path(a), now, now) }

// remove takes an artifact out; one that is not there is no error. Who reads it
// at this moment reads on.
func (s *store) remove(a artifact) error {
	if err := os.Remove(s.path(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", a.name, err)
	}
	_ = os.Remove(filepath.Join(s.dir, a.sum)) // stays when another name is in it
	return nil
}
