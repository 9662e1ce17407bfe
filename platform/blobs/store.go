// Package blobs keeps media by the SHA-256 of its contents, in a folder or in S3,
// takes it in uploads that can be resumed, and serves it over HTTP.
package blobs

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

// What the keys of the store begin with.
const (
	blobsPrefix    = "blobs/"    // <two digits>/<name>
	incomingPrefix = "incoming/" // contents whose SHA-256 is not known before they have ended
	uploadsPrefix  = "uploads/"  // <owner>-<id>/begin.<size> and <owner>-<id>/<offset>
	donePrefix     = "done/"     // <owner>-<id>, of an upload that became a blob
)

const (
	// bufferSize is how much of a blob is in memory while it is stored.
	bufferSize = 128 << 10
	// storeTime is how long the store may take over one object, and over what the
	// caller no longer waits for.
	storeTime = 10 * time.Minute
	// temporary is how a folder's unfinished files end.
	temporary = ".tmp"
	// opaqueType is the media type of what is no blob.
	opaqueType = "application/octet-stream"
)

// Limits bound what is taken; zero fields take the defaults.
type Limits struct {
	// BlobSize is the most bytes that a blob has: 200 MiB by default.
	BlobSize int64
	// OwnerBytes is the most that the uploads which an owner has under way may have
	// in the end, together: 1 GiB by default.
	OwnerBytes int64
	// OwnerUploads is how many uploads an owner has under way: 64 by default.
	OwnerUploads int
}

func (l Limits) orDefaults() Limits {
	if l.BlobSize <= 0 {
		l.BlobSize = 200 << 20
	}
	if l.OwnerBytes <= 0 {
		l.OwnerBytes = 1 << 30
	}
	if l.OwnerUploads <= 0 {
		l.OwnerUploads = 64
	}
	return l
}

// Store keeps blobs, which never change, and uploads. All its state is in the
// bucket: any process that opens the same one goes on with what another began. It
// is safe for concurrent use.
type Store struct {
	bucket *blob.Bucket
	limits Limits
	folder string // where the bucket is, if it is a folder

	mu   sync.Mutex
	busy map[string]bool // uploads that this process is at
}

func newStore(bucket *blob.Bucket, limits Limits) *Store {
	return &Store{bucket: bucket, limits: limits.orDefaults(), busy: make(map[string]bool)}
}

// Close gives back what Open took.
func (s *Store) Close() error {
	if err := s.bucket.Close(); err != nil {
		return fmt.Errorf("close the media store: %w", err)
	}
	return nil
}

// Check says whether the store answers.
func (s *Store) Check(ctx context.Context) error {
	ok, err := s.bucket.IsAccessible(ctx)
	if err == nil && !ok {
		err = errors.New("there is no such bucket")
	}
	if err != nil {
		return errAway.Because(fmt.Errorf("look at the media store: %w", err))
	}
	return nil
}

// Info is what there is to know of a blob.
type Info struct {
	Sum  Sum
	Size int64 // bytes
	// MediaType is one of MediaTypes: what the contents are.
	MediaType string
}

// Expect is what Put's caller knows of the contents.
type Expect struct {
	// Limit is the most bytes to take; 0 is the store's limit.
	Limit int64
	// Sum, unless zero, is what the contents must hash to. With it they are written
	// once, without it twice.
	Sum Sum
	// MediaType, unless empty, is what the contents must be.
	MediaType string
}

// Put stores what r gives until it ends. Nothing is kept, and the error is one of
// ErrEmpty, ErrTooLarge, ErrSum, ErrMediaType and ErrMediaTypeClaim, when the
// contents are not as they should be; an error of r is returned as it is, wrapped.
// A blob that is there already is left as it is; when its Sum is given, r is not
// even read.
func (s *Store) Put(ctx context.Context, r io.Reader, e Expect) (Info, error) {
	if e.Limit <= 0 || e.Limit > s.limits.BlobSize {
		e.Limit = s.limits.BlobSize
	}
	if e.Sum != (Sum{}) {
		info, err := s.Stat(ctx, e.Sum)
		if err == nil {
			return info, agree(info.MediaType, e.MediaType)
		}
		if !errors.Is(err, ErrUnknown) {
			return Info{}, err
		}
	}
	head, err := io.ReadAll(io.LimitReader(r, sniffLength))
	if err != nil {
		return Info{}, fmt.Errorf("read the contents: %w", err)
	}
	if len(head) == 0 {
		return Info{}, ErrEmpty
	}
	mediaType, err := decide(head, e.MediaType)
	if err != nil {
		return Info{}, err
	}
	key := incomingPrefix + rand.Text()
	if e.Sum != (Sum{}) {
		key = e.Sum.key()
	}
	got, err := s.write(ctx, key, object{mediaType: mediaType, limit: e.Limit, accept: func(got written) error {
		if e.Sum != (Sum{}) && got.sum != e.Sum {
			return ErrSum
		}
		return nil
	}}, io.MultiReader(bytes.NewReader(head), r))
	if err != nil {
		return Info{}, err
	}
	info := Info{Sum: got.sum, Size: got.size, MediaType: mediaType}
	if e.Sum != (Sum{}) {
		return info, nil
	}
	defer s.removeAll(ctx, key)
	incoming, err := s.read(ctx, key, 0, -1)
	if err != nil {
		return Info{}, err
	}
	defer incoming.Close()
	return s.Put(ctx, incoming, Expect{Limit: e.Limit, Sum: got.sum, MediaType: e.MediaType})
}

// object is how something is to be stored.
type object struct {
	mediaType string
	limit     int64
	// once: it is an error when there is one already.
	once bool
	// accept, if not nil, sees what was written before anybody can.
	accept func(written) error
}

// written is what an object has become.
type written struct {
	sum  Sum
	size int64
	head []byte // the first bytes, at most sniffLength
}

// errExists says that an object that is written once is there already, or was and
// went with its folder.
var errExists = errors.New("there is such an object already")

// write stores r under key, all of it or nothing.
func (s *Store) write(ctx context.Context, key string, o object, r io.Reader) (got written, err error) {
	ctx, abandon := context.WithCancel(ctx)
	defer abandon()
	var file *os.File
	w, err := s.bucket.NewWriter(ctx, key, &blob.WriterOptions{
		ContentType: o.mediaType, DisableContentTypeDetection: true, IfNotExist: o.once,
		BeforeWrite: func(as func(any) bool) error {
			as(&file) // of a folder
			return nil
		},
	})
	if err != nil {
		return written{}, storeError(ctx, err, "begin to store "+key)
	}
	got, err = copyTo(ctx, w, o, r)
	if err == nil && o.accept != nil {
		err = o.accept(got)
	}
	if err == nil && file != nil {
		if failed := file.Sync(); failed != nil {
			err = storeError(ctx, failed, "store "+key)
		}
	}
	if err != nil {
		abandon() // closed like this, the writer leaves nothing
		_ = w.Close()
		return written{}, err
	}
	release, err := s.alone(key, o)
	if err == nil {
		err = w.Close()
		release()
	} else {
		abandon()
		_ = w.Close()
	}
	if err != nil {
		code := gcerrors.Code(err)
		if o.once && (code == gcerrors.FailedPrecondition || code == gcerrors.AlreadyExists || errors.Is(err, fs.ErrNotExist)) {
			return written{}, errExists
		}
		return written{}, storeError(ctx, err, "store "+key)
	}
	return got, s.syncFolder(key)
}

// alone keeps other processes from the folder that an object which is written once
// comes to, until release is called: fileblob first looks whether there is one and
// then renames.
func (s *Store) alone(key string, o object) (release func(), err error) {
	if s.folder == "" || !o.once {
		return func() {}, nil
	}
	folder, err := os.Open(filepath.Dir(filepath.Join(s.folder, key)))
	if err != nil {
		return nil, err
	}
	for err = syscall.EINTR; errors.Is(err, syscall.EINTR); {
		err = syscall.Flock(int(folder.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		folder.Close()
		return nil, fmt.Errorf("lock the media folder: %w", err)
	}
	return func() { folder.Close() }, nil
}

// copyTo copies r to w and sees what it is.
func copyTo(ctx context.Context, w io.Writer, o object, r io.Reader) (got written, err error) {
	hash := sha256.New()
	buffer := make([]byte, bufferSize)
	var characters text
	for {
		n, failed := r.Read(buffer)
		p := buffer[:n]
		if got.size += int64(n); got.size > o.limit {
			return got, tooLarge(o.limit)
		}
		got.head = append(got.head, p[:min(n, sniffLength-len(got.head))]...)
		hash.Write(p)
		if o.mediaType == textType {
			characters.add(p)
		}
		if _, err := w.Write(p); err != nil {
			return got, storeError(ctx, err, "store contents")
		}
		if errors.Is(failed, io.EOF) {
			break
		}
		if failed != nil {
			return got, fmt.Errorf("read the contents: %w", failed)
		}
		if err := ctx.Err(); err != nil {
			return got, storeError(ctx, err, "store contents")
		}
	}
	if o.mediaType == textType && !characters.valid() {
		return got, notText()
	}
	hash.Sum(got.sum[:0])
	return got, nil
}

func tooLarge(limit int64) error {
	f := *ErrTooLarge
	f.Message = fmt.Sprintf("this is larger than the %d bytes that it may have", limit)
	return &f
}

func notText() error {
	f := *ErrMediaType
	f.Message = "these contents begin like text and are not text in UTF-8"
	return &f
}

// syncFolder makes a file's name in a folder last, as its contents do.
func (s *Store) syncFolder(key string) error {
	if s.folder == "" {
		return nil
	}
	// A folder may be new itself.
	for folder := filepath.Dir(filepath.Join(s.folder, key)); ; folder = filepath.Dir(folder) {
		f, err := os.Open(folder)
		if err == nil {
			err = f.Sync()
			f.Close()
		}
		if err = unlessGone(err); err != nil { // as an upload's may be by now
			return errAway.Because(fmt.Errorf("sync the media folder: %w", err))
		}
		if folder == s.folder {
			return nil
		}
	}
}

// Stat says what is known of a blob, or ErrUnknown.
func (s *Store) Stat(ctx context.Context, sum Sum) (Info, error) {
	attributes, err := s.bucket.Attributes(ctx, sum.key())
	if err != nil {
		return Info{}, storeError(ctx, err, "look at "+sum.String())
	}
	info := Info{Sum: sum, Size: attributes.Size, MediaType: attributes.ContentType}
	if _, ok := endings[info.MediaType]; ok {
		return info, nil
	}
	// A folder does not keep it: the contents tell, as they did when they came.
	r, err := s.read(ctx, sum.key(), 0, sniffLength)
	if err != nil {
		return Info{}, err
	}
	defer r.Close()
	head, err := io.ReadAll(r)
	if err != nil {
		return Info{}, storeError(ctx, err, "read "+sum.String())
	}
	info.MediaType = detect(head)
	return info, nil
}

// Open reads length bytes of a blob from offset on, or to its end when length is
// negative or more than there is. Offset may be the blob's size, and not more. The
// caller closes the reader.
func (s *Store) Open(ctx context.Context, sum Sum, offset, length int64) (io.ReadCloser, error) {
	info, err := s.Stat(ctx, sum)
	if err != nil {
		return nil, err
	}
	if offset < 0 || offset > info.Size {
		return nil, errOutOfRange
	}
	if offset == info.Size {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	return s.read(ctx, sum.key(), offset, length)
}

// read opens an object of the bucket.
func (s *Store) read(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.bucket.NewRangeReader(ctx, key, offset, length, nil)
	if err != nil {
		return nil, storeError(ctx, err, "open "+key)
	}
	return r, nil
}

// Delete removes a blob, or returns ErrUnknown. Who is reading it from a folder
// reads it to the end.
func (s *Store) Delete(ctx context.Context, sum Sum) error {
	if err := s.bucket.Delete(ctx, sum.key()); err != nil {
		return storeError(ctx, err, "delete "+sum.String())
	}
	return nil
}

// entry is an object as a list has it.
type entry struct {
	key      string
	size     int64
	modified time.Time
}

// list returns the objects whose keys begin with prefix.
func (s *Store) list(ctx context.Context, prefix string) ([]entry, error) {
	if s.folder != "" {
		return s.listFolder(ctx, prefix)
	}
	var all []entry
	for objects := s.bucket.List(&blob.ListOptions{Prefix: prefix}); ; {
		o, err := objects.Next(ctx)
		switch {
		case err == nil:
			all = append(all, entry{o.Key, o.Size, o.ModTime})
		case errors.Is(err, io.EOF):
			return all, nil
		default:
			return nil, storeError(ctx, err, "list "+prefix)
		}
	}
}

// listFolder does what fileblob's list does, which fails when a temporary file is
// renamed meanwhile, and reads the folder anew for every thousand files.
func (s *Store) listFolder(ctx context.Context, prefix string) ([]entry, error) {
	var all []entry
	root := filepath.Join(s.folder, prefix[:strings.LastIndex(prefix, "/")+1])
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return unlessGone(err)
		}
		key, err := filepath.Rel(s.folder, path)
		if err != nil {
			return err
		}
		switch {
		case path == root:
			return nil
		case d.IsDir() && !strings.HasPrefix(key+"/", prefix):
			return fs.SkipDir
		case d.IsDir() || !strings.HasPrefix(key, prefix):
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return unlessGone(err)
		}
		all = append(all, entry{key, info.Size(), info.ModTime()})
		return nil
	})
	if err != nil {
		return nil, storeError(ctx, err, "list "+prefix)
	}
	return all, nil
}

func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeAll removes objects, also when the caller has gone. What cannot be removed
// is left to Sweep.
func (s *Store) removeAll(ctx context.Context, keys ...string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	for _, key := range keys {
		_ = s.bucket.Delete(ctx, key)
	}
}

// Sweep removes uploads, under way or done, that nothing was added to since before,
// and what processes that were killed left behind. It returns how many uploads were
// abandoned. One process calls it now and then; several may.
func (s *Store) Sweep(ctx context.Context, before time.Time) (int, error) {
	type upload struct {
		last time.Time
		keys []string
	}
	uploads := make(map[string]*upload)
	objects, err := s.list(ctx, uploadsPrefix)
	if err != nil {
		return 0, err
	}
	for _, o := range objects {
		name, _, _ := strings.Cut(strings.TrimPrefix(o.key, uploadsPrefix), "/")
		u := uploads[name]
		if u == nil {
			u = &upload{}
			uploads[name] = u
		}
		if o.modified.After(u.last) {
			u.last = o.modified
		}
		u.keys = append(u.keys, o.key)
	}
	abandoned := 0
	for name, u := range uploads {
		if u.last.Before(before) {
			abandoned++
			s.removeUpload(ctx, uploadsPrefix+name, u.keys)
		}
	}
	s.removeEmptyFolders(before)
	prefixes := []string{incomingPrefix, donePrefix}
	if s.folder != "" {
		prefixes = append(prefixes, blobsPrefix)
	}
	for _, prefix := range prefixes {
		objects, err := s.list(ctx, prefix)
		if err != nil {
			return abandoned, err
		}
		for _, o := range objects {
			if o.modified.Before(before) && (prefix != blobsPrefix || strings.HasSuffix(o.key, temporary)) {
				s.removeAll(ctx, o.key)
			}
		}
	}
	return abandoned, nil
}

// Content opens a blob for reading anywhere in it, or returns ErrUnknown. The caller
// closes the closer. From a folder it is the file itself, which the kernel can send.
func (s *Store) Content(ctx context.Context, sum Sum) (io.ReadSeeker, io.Closer, Info, error) {
	if s.folder == "" {
		info, err := s.Stat(ctx, sum)
		if err != nil {
			return nil, nil, Info{}, err
		}
		r := &remote{ctx: ctx, store: s, key: sum.key(), size: info.Size}
		return r, r, info, nil
	}
	var file *os.File
	r, err := s.bucket.NewRangeReader(ctx, sum.key(), 0, -1, &blob.ReaderOptions{BeforeRead: func(as func(any) bool) error {
		as(&file)
		return nil
	}})
	if err != nil {
		return nil, nil, Info{}, storeError(ctx, err, "open "+sum.String())
	}
	head := make([]byte, sniffLength)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		_ = r.Close()
		return nil, nil, Info{}, storeError(ctx, err, "read "+sum.String())
	}
	return file, r, Info{Sum: sum, Size: r.Size(), MediaType: detect(head[:n])}, nil
}

// remote reads an object of a server anywhere in it: where it was last sought to, it
// asks from there on. It may be closed while it is read.
type remote struct {
	ctx   context.Context // io.Reader has no other place for it
	store *Store
	key   string
	size  int64

	mu     sync.Mutex
	at     int64
	body   io.ReadCloser // at at, if not nil
	closed bool
}

func (r *remote) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return 0, os.ErrClosed
	case r.at >= r.size:
		return 0, io.EOF
	case r.body == nil:
		body, err := r.store.read(r.ctx, r.key, r.at, -1)
		if err != nil {
			return 0, err
		}
		r.body = body
	}
	n, err := r.body.Read(p)
	r.at += int64(n)
	if errors.Is(err, io.EOF) && r.at < r.size {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *remote) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += r.at
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errOutOfRange
	}
	if offset != r.at {
		r.drop()
	}
	r.at = offset
	return offset, nil
}

func (r *remote) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.drop()
	return nil
}

func (r *remote) drop() {
	if r.body != nil {
		r.body.Close()
		r.body = nil
	}
}
