package player

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// keep makes content the contents of the file at path, which is the user's alone:
// after a power cut it has the old contents or the new ones.
func keep(path string, content []byte) error {
	temp := path + ".new"
	// One that a killed process left would keep its permissions.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := writeSynced(temp, content); err != nil {
		os.Remove(temp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replace(temp, path)
}

func writeSynced(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Sync()
}

// replace gives a file that is on the disk another name, in the same folder.
func replace(temp, path string) error {
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer folder.Close()
	if err := folder.Sync(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// syncsAtOnce is how many journals are flushed at the same time.
const syncsAtOnce = 8

// syncer flushes journals to the disk: each as soon as something was written, or
// all that came together while the disk was busy at once.
type syncer struct {
	failed func(j *Journal, err error)

	mu    sync.Mutex
	dirty map[*Journal]bool
	wake  chan struct{}
}

func newSyncer(failed func(*Journal, error)) *syncer {
	return &syncer{failed: failed, dirty: make(map[*Journal]bool), wake: make(chan struct{}, 1)}
}

func (s *syncer) add(j *Journal) {
	s.mu.Lock()
	s.dirty[j] = true
	s.mu.Unlock()
	signal(s.wake)
}

func (s *syncer) take() map[*Journal]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.dirty
	s.dirty = make(map[*Journal]bool)
	return taken
}

// run flushes until ctx ends, and then what is left.
func (s *syncer) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-s.wake:
		case <-ctx.Done():
		}
		var all sync.WaitGroup
		places := make(chan struct{}, syncsAtOnce)
		for j := range s.take() {
			places <- struct{}{}
			all.Go(func() {
				defer func() { <-places }()
				if err := j.Sync(); err != nil {
					s.failed(j, err)
				}
			})
		}
		all.Wait()
	}
}

// signal wakes who waits on a channel with room for one, now or later.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
