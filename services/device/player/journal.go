package player

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	// compactFrom is how many bytes of plays that are not needed any more a journal
	// keeps at most before it is written anew, if they are half of it.
	compactFrom = 256 << 10
	maxRecord   = 4 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Play is one item that was shown once, as it is written down and handed in.
type Play struct {
	// ID is a ULID of when the play began.
	ID         string `json:"id"`
	CreativeID string `json:"creative_id"`
	DurationMS int64  `json:"duration_ms"`
}

// record is one line of a journal: a play, or from where on its plays are unsent.
type record struct {
	Play
	Head *int64 `json:"head,omitempty"`
}

// file is what a journal needs of one.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// Journal keeps the plays of a device that are not acknowledged yet, in one file: a
// line for each, with a checksum before it. It may be used by several goroutines.
type Journal struct {
	path  string
	open  func(path string, flag int) (file, error)
	limit int64

	mu     sync.Mutex
	file   file
	head   int64 // where the unsent plays begin
	end    int64 // where the next record goes
	first  int64 // number of the play at head, counted since the journal was opened
	unsent int64
	torn   bool // something that is no record may follow end
}

// OpenJournal opens the journal at path, or makes it. What follows its first broken
// record is cut off: of how many bytes is the second result. With more than limit
// bytes of unsent plays the oldest are dropped.
func OpenJournal(path string, limit int64) (*Journal, int64, error) {
	return openJournal(path, limit, func(path string, flag int) (file, error) {
		return os.OpenFile(path, flag, 0o600)
	})
}

func openJournal(path string, limit int64, open func(string, int) (file, error)) (*Journal, int64, error) {
	f, err := open(path, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return nil, 0, fmt.Errorf("opening the journal: %w", err)
	}
	j := &Journal{path: path, open: open, limit: limit, file: f}
	cut, err := j.recover()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("opening the journal %s: %w", path, err)
	}
	return j, cut, nil
}

func (j *Journal) recover() (cut int64, err error) {
	j.end, err = j.scan(0, 1<<62, func(at, _ int64, r record) bool {
		if r.Head != nil && *r.Head >= j.head && *r.Head <= at {
			j.head = *r.Head
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	if _, err := j.scan(j.head, j.end, func(_, _ int64, r record) bool {
		if r.Head == nil {
			j.unsent++
		}
		return true
	}); err != nil {
		return 0, err
	}
	rest, err := io.Copy(io.Discard, io.NewSectionReader(j.file, j.end, 1<<62))
	if err != nil {
		return 0, fmt.Errorf("reading its end: %w", err)
	}
	j.torn = rest > 0
	return rest, j.mend()
}

// scan calls each with the records from one place to another, where they are and
// where they end, until it returns false or a record is broken; good is where the
// last record ended.
func (j *Journal) scan(from, to int64, each func(at, next int64, r record) bool) (good int64, err error) {
	lines := bufio.NewReaderSize(io.NewSectionReader(j.file, from, to-from), maxRecord)
	for good = from; ; {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, bufio.ErrBufferFull):
			return good, nil
		case err != nil:
			return good, fmt.Errorf("reading it: %w", err)
		}
		r, ok := parseRecord(line)
		if !ok {
			return good, nil
		}
		next := good + int64(len(line))
		if !each(good, next, r) {
			return good, nil
		}
		good = next
	}
}

func parseRecord(line []byte) (r record, ok bool) {
	sum, text, found := bytes.Cut(bytes.TrimSuffix(line, []byte("\n")), []byte(" "))
	want, err := strconv.ParseUint(string(sum), 16, 32)
	if !found || err != nil || len(sum) != 8 || uint32(want) != crc32.Checksum(text, castagnoli) {
		return record{}, false
	}
	err = json.Unmarshal(text, &r)
	return r, err == nil
}

func appendRecord(to []byte, r any) ([]byte, error) {
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("writing a record: %w", err)
	}
	if len(text) > maxRecord-16 {
		return nil, fmt.Errorf("a record of %d bytes is too long", len(text))
	}
	return fmt.Appendf(to, "%08x %s\n", crc32.Checksum(text, castagnoli), text), nil
}

// mend cuts off what follows the last record.
func (j *Journal) mend() error {
	if !j.torn {
		return nil
	}
	if err := j.file.Truncate(j.end); err != nil {
		return fmt.Errorf("cutting off what is no record: %w", err)
	}
	j.torn = false
	return nil
}

func (j *Journal) write(lines []byte) error {
	if err := j.mend(); err != nil {
		return err
	}
	n, err := j.file.WriteAt(lines, j.end)
	if err != nil {
		j.torn = n > 0
		return errors.Join(err, j.mend())
	}
	j.end += int64(len(lines))
	return nil
}

// Append writes plays down, all or none of them. Sync brings them to the disk.
// dropped is how many of the oldest had to go to make room.
func (j *Journal) Append(plays ...Play) (dropped int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var lines []byte
	for _, p := range plays {
		if lines, err = appendRecord(lines, p); err != nil {
			return 0, err
		}
	}
	if j.end-j.head+int64(len(lines)) > j.limit {
		least := j.end - j.limit*3/4
		if dropped, err = j.drop(func(at int64, _ Play) bool { return at < least }); err != nil {
			return dropped, fmt.Errorf("dropping the oldest plays: %w", err)
		}
	}
	if err := j.write(lines); err != nil {
		return dropped, fmt.Errorf("writing down a play: %w", err)
	}
	j.unsent += int64(len(plays))
	return dropped, nil
}

// Next returns the oldest plays: at most so many, and so many bytes of them. upTo is
// for Acknowledge.
func (j *Journal) Next(most, size int) (plays []Play, upTo int64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	_, err = j.scan(j.head, j.end, func(at, next int64, r record) bool {
		if r.Head != nil {
			return true
		}
		size -= int(next - at)
		if len(plays) == most || len(plays) > 0 && size < 0 {
			return false
		}
		plays = append(plays, r.Play)
		return true
	})
	if err == nil && len(plays) == 0 && j.unsent > 0 {
		err = fmt.Errorf("%d plays of the journal %s cannot be read any more", j.unsent, j.path)
	}
	return plays, j.first + int64(len(plays)), err
}

// Acknowledge throws away the plays before upTo, which Next returned. After an error
// they are handed in again when the journal is opened the next time.
func (j *Journal) Acknowledge(upTo int64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	number := j.first
	_, err := j.drop(func(int64, Play) bool {
		number++
		return number <= upTo
	})
	return err
}

// Expire drops plays that began before a time, and returns how many.
func (j *Journal) Expire(before time.Time) (int64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.drop(func(_ int64, p Play) bool {
		id, err := ulid.ParseStrict(p.ID)
		return err != nil || id.Timestamp().Before(before)
	})
}

// drop moves the head behind the plays for which it is asked to, until it is not.
func (j *Journal) drop(which func(at int64, p Play) bool) (dropped int64, err error) {
	head, err := j.scan(j.head, j.end, func(at, _ int64, r record) bool {
		if r.Head != nil {
			return true
		}
		if !which(at, r.Play) {
			return false
		}
		dropped++
		return true
	})
	if err != nil || dropped == 0 {
		return 0, err
	}
	j.head, j.first, j.unsent = head, j.first+dropped, j.unsent-dropped
	if j.unsent == 0 {
		// Needs no room on the disk: a full one gets some back.
		if err := j.file.Truncate(0); err != nil {
			return dropped, fmt.Errorf("emptying the journal: %w", err)
		}
		j.head, j.end, j.torn = 0, 0, false
		return dropped, nil
	}
	line, err := appendRecord(nil, struct {
		Head int64 `json:"head"`
	}{head})
	if err != nil {
		return dropped, err
	}
	if err := j.write(line); err != nil {
		return dropped, fmt.Errorf("writing down what is acknowledged: %w", err)
	}
	if j.head < compactFrom || j.head < j.end/2 {
		return dropped, nil
	}
	return dropped, j.compact()
}

// compact writes the unsent plays to a new file, which takes the place of the old.
func (j *Journal) compact() error {
	temp := j.path + ".new"
	f, err := j.open(temp, os.O_CREATE|os.O_RDWR|os.O_TRUNC)
	if err != nil {
		return fmt.Errorf("compacting the journal: %w", err)
	}
	out := bufio.NewWriter(io.NewOffsetWriter(f, 0))
	var size int64
	var lines []byte
	_, err = j.scan(j.head, j.end, func(_, _ int64, r record) bool {
		if r.Head != nil {
			return true
		}
		if lines, err = appendRecord(lines[:0], r.Play); err == nil {
			_, err = out.Write(lines)
		}
		size += int64(len(lines))
		return err == nil
	})
	for _, step := range []func() error{out.Flush, f.Sync, func() error { return replace(temp, j.path) }} {
		if err == nil {
			err = step()
		}
	}
	if err != nil {
		f.Close()
		os.Remove(temp)
		return fmt.Errorf("compacting the journal: %w", err)
	}
	j.file.Close()
	j.file, j.head, j.end, j.torn = f, 0, size, false
	return nil
}

// Unsent is how many plays are not acknowledged.
func (j *Journal) Unsent() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.unsent
}

// Sync returns when all that was written is on the disk.
func (j *Journal) Sync() error {
	j.mu.Lock()
	f := j.file
	j.mu.Unlock()
	if err := f.Sync(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("flushing the journal %s: %w", j.path, err)
	}
	return nil
}

// Close closes the file.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.file.Close()
}
