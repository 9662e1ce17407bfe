package files_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/files"
)

// TestMain lets this binary also be the process that dies with a lock.
func TestMain(m *testing.M) {
	path := os.Getenv("FILES_TEST_LOCK")
	if path == "" {
		os.Exit(m.Run())
	}
	if _, err := files.Lock(context.Background(), path, nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("held")
	select {}
}

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, files.Replace(path, []byte("one"), 0o600))
	temp := fmt.Sprintf("%s.%d.new", path, os.Getpid())
	require.NoError(t, os.WriteFile(temp, []byte("left by somebody who was killed"), 0o644))
	require.NoError(t, files.Replace(path, []byte("two"), 0o640))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "two", string(text))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode().Perm())
	require.NoFileExists(t, temp)

	t.Run("ErrLeavesTheOld", func(t *testing.T) {
		require.NoError(t, os.MkdirAll(filepath.Join(temp, "full"), 0o755))
		require.ErrorContains(t, files.Replace(path, []byte("three"), 0o600), "write "+path)
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, "two", string(text))
	})
	t.Run("ErrNoFolder", func(t *testing.T) {
		require.ErrorIs(t, files.Replace(filepath.Join(t.TempDir(), "no", "x"), nil, 0o600), os.ErrNotExist)
	})
	t.Run("ReadersSeeOneOrTheOther", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "file")
		long := make([]byte, 1<<20)
		require.NoError(t, files.Replace(path, long, 0o600))
		var writing sync.WaitGroup
		writing.Go(func() {
			for range 50 {
				if err := files.Replace(path, long, 0o600); err != nil {
					t.Error(err)
				}
			}
		})
		for range 50 {
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Len(t, text, len(long))
		}
		writing.Wait()
	})
}

// wait has somebody wait for a lock; the channel says how that ended.
func wait(t *testing.T, path string) <-chan error {
	t.Helper()
	waits, got := make(chan struct{}), make(chan error, 1)
	go func() {
		lock, err := files.Lock(t.Context(), path, func() { close(waits) })
		if err == nil {
			err = lock.Close()
		}
		got <- err
	}()
	<-waits
	return got
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := files.Lock(t.Context(), path, func() { t.Error("nobody holds it") })
	require.NoError(t, err)

	t.Run("ErrHeld", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		told := 0
		_, err := files.Lock(ctx, path, func() { told++ })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, path)
		require.Equal(t, 1, told)
	})
	t.Run("Next", func(t *testing.T) {
		got := wait(t, path)
		require.NoError(t, held.Close())
		require.NoError(t, <-got)
	})
	t.Run("HolderDies", func(t *testing.T) {
		holder := exec.Command(os.Args[0])
		holder.Env = append(os.Environ(), "FILES_TEST_LOCK="+path)
		out, err := holder.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, holder.Start())
		line := make([]byte, len("held\n"))
		_, err = out.Read(line)
		require.NoError(t, err)
		require.Equal(t, "held\n", string(line))

		got := wait(t, path)
		require.NoError(t, holder.Process.Kill())
		require.Error(t, holder.Wait(), "it was killed")
		require.NoError(t, <-got)
	})
	t.Run("ErrNoFolder", func(t *testing.T) {
		_, err := files.Lock(t.Context(), filepath.Join(t.TempDir(), "no", "lock"), nil)
		require.ErrorIs(t, err, os.ErrNotExist)
	})
}
