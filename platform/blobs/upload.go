package blobs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha1" // tus demands it; it only finds damage on the way
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
)

const (
	// PartSize is the most bytes that an upload keeps in one object: what is lost at
	// worst when a process is killed.
	PartSize = 4 << 20
	// sparePartCount is how many parts an upload may have besides those of full size:
	// one for each time that it was interrupted.
	sparePartCount = 1000
	// recordLimit bounds what is kept about an upload, in bytes.
	recordLimit = 64 << 10

	beginKey   = "begin."
	offsetForm = "%015d" // so that parts are listed in their order
)

// Upload is a blob that comes in parts.
type Upload struct {
	// ID names it; it means something with its owner only.
	ID string
	// Offset is how many bytes have been kept, of Size.
	Offset, Size int64
	// Complete: it has become the blob Sum.
	Complete bool
	// Sum and MediaType are what was announced.
	Sum       Sum
	MediaType string
	// Metadata is the caller's own, as it was given to Begin.
	Metadata string

	owner string
	parts []part
	keys  []string
}

// part is an object with some of an upload's bytes.
type part struct{ offset, size int64 }

// Announcement is what is known of a blob before it comes.
type Announcement struct {
	Size int64 // bytes
	Sum  Sum
	// MediaType, unless empty, is what the contents must be.
	MediaType string
	// Metadata is kept and given back: at most 4 KiB.
	Metadata string
}

// record is how an announcement is stored.
type record struct {
	Size      int64  `json:"size"`
	Sum       string `json:"sha256"`
	MediaType string `json:"media_type,omitempty"`
	Metadata  string `json:"metadata,omitempty"`
}

// place is what the keys of an upload begin with, without its prefix. An owner's are
// found by the owner, and nobody else's are.
func place(owner, id string) string { return ownerKey(owner) + id }

func ownerKey(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return hex.EncodeToString(sum[:16]) + "-"
}

// validID keeps ids that Begin did not make from meaning anything to a store.
func validID(id string) bool {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
	return len(id) == 26 && strings.Trim(id, letters) == ""
}

// Begin makes an upload. It fails with ErrEmpty, ErrTooLarge, ErrMediaType or
// ErrUploadsExhausted.
func (s *Store) Begin(ctx context.Context, owner string, a Announcement) (Upload, error) {
	switch {
	case a.Size <= 0:
		return Upload{}, ErrEmpty
	case a.Size > s.limits.BlobSize:
		return Upload{}, tooLarge(s.limits.BlobSize)
	case a.Sum == (Sum{}):
		return Upload{}, ErrSum
	case len(a.Metadata) > 4<<10:
		return Upload{}, fault.New(fault.InvalidArgument, "METADATA_TOO_LARGE", "metadata may have 4096 bytes")
	}
	if a.MediaType != "" && !slices.ContainsFunc(MediaTypes(), func(is string) bool { return agree(is, a.MediaType) == nil }) {
		f := *ErrMediaType
		f.Message = "the media type that is claimed is not among those that are taken: " + strings.Join(MediaTypes(), ", ")
		return Upload{}, &f
	}
	content, err := json.Marshal(record{Size: a.Size, Sum: a.Sum.String(), MediaType: a.MediaType, Metadata: a.Metadata})
	if err != nil {
		return Upload{}, fmt.Errorf("write down an upload: %w", err)
	}
	id := rand.Text()
	folder := uploadsPrefix + place(owner, id)
	begin := folder + "/" + beginKey + strconv.FormatInt(a.Size, 10)
	if err := s.save(ctx, begin, content); err != nil {
		return Upload{}, err
	}
	// Looked at afterwards, so that several at once do not get past the limit.
	count, size := 0, int64(0)
	objects, err := s.list(ctx, uploadsPrefix+ownerKey(owner))
	for _, o := range objects {
		if _, announced, ok := strings.Cut(o.key, "/"+beginKey); ok {
			n, _ := strconv.ParseInt(announced, 10, 64) // 0 of a temporary file
			count, size = count+1, size+n
		}
	}
	if err == nil && (count > s.limits.OwnerUploads || size > s.limits.OwnerBytes) {
		err = ErrUploadsExhausted
	}
	if err != nil {
		s.removeUpload(ctx, folder, []string{begin})
		return Upload{}, err
	}
	return Upload{ID: id, Size: a.Size, Sum: a.Sum, MediaType: a.MediaType, Metadata: a.Metadata, owner: owner}, nil
}

// Upload says how far an upload is, or ErrUploadUnknown.
func (s *Store) Upload(ctx context.Context, owner, id string) (Upload, error) {
	if !validID(id) {
		return Upload{}, ErrUploadUnknown
	}
	u := Upload{ID: id, owner: owner}
	folder := uploadsPrefix + place(owner, id) + "/"
	begin := ""
	sizes := make(map[int64]int64)
	objects, err := s.list(ctx, folder)
	if err != nil {
		return Upload{}, err
	}
	for _, o := range objects {
		u.keys = append(u.keys, o.key)
		name := strings.TrimPrefix(o.key, folder)
		if strings.HasSuffix(name, temporary) {
			continue
		}
		if strings.HasPrefix(name, beginKey) {
			begin = o.key
		} else if offset, err := strconv.ParseInt(name, 10, 64); err == nil {
			sizes[offset] = o.size
		}
	}
	var r record
	err = ErrUnknown
	if begin != "" {
		r, err = s.load(ctx, begin)
	}
	if errors.Is(err, ErrUnknown) { // finished, perhaps just now
		u.Complete = true
		r, err = s.load(ctx, donePrefix+place(owner, id))
	}
	if errors.Is(err, ErrUnknown) {
		return Upload{}, ErrUploadUnknown
	}
	if err != nil {
		return Upload{}, err
	}
	if u.Sum, err = ParseSum(r.Sum); err != nil {
		return Upload{}, errDamaged.Because(err)
	}
	u.Size, u.MediaType, u.Metadata = r.Size, r.MediaType, r.Metadata
	if u.Complete {
		u.Offset = u.Size
		return u, nil
	}
	// A part begins where the one before it ends.
	for size := sizes[0]; size > 0 && u.Offset+size <= u.Size; size = sizes[u.Offset] {
		u.parts = append(u.parts, part{u.Offset, size})
		u.Offset += size
	}
	return u, nil
}

// Chunk is the next bytes of an upload.
type Chunk struct {
	// Offset is where in the blob it begins: how far the upload is.
	Offset int64
	// Length is how many bytes Body has, or negative if that is not known.
	Length int64
	Body   io.Reader
	// Checksum, if not nil, decides whether the chunk is kept. Such a chunk has at
	// most PartSize bytes.
	Checksum *Checksum
}

// Checksum is what a chunk hashes to.
type Checksum struct {
	Algorithm string // one of ChecksumAlgorithms
	Value     []byte
}

// ChecksumAlgorithms are the names of the algorithms, as tus has them.
func ChecksumAlgorithms() []string { return slices.Sorted(maps.Keys(algorithms)) }

var algorithms = map[string]func() hash.Hash{"sha1": sha1.New, "sha256": sha256.New}

// Append adds a chunk and returns how far the upload is then, also when it fails:
// what arrived of a chunk without a checksum is kept. It fails with ErrOffset when
// the upload is not at the chunk's offset, ErrBusy while somebody else is at it, and
// ErrChecksum; with ErrMediaType or ErrMediaTypeClaim, by the first part, when it
// cannot come right any more, and then the upload is gone. When Offset has become
// Size, call Finish.
//
// Of two processes that append to one upload at the same offset one gets ErrOffset.
// (A server that speaks S3 but not If-None-Match lets the last one win; the blob's
// SHA-256 then decides.)
func (s *Store) Append(ctx context.Context, owner, id string, c Chunk) (Upload, error) {
	release, err := s.hold(owner, id)
	if err != nil {
		return Upload{}, err
	}
	defer release()
	u, err := s.Upload(ctx, owner, id)
	if err != nil {
		return Upload{}, err
	}
	switch {
	case c.Offset != u.Offset:
		return u, ErrOffset
	case c.Length > u.Size-u.Offset:
		return u, errTooLong
	case c.Checksum != nil && c.Length > PartSize:
		return u, errChunkLarge
	case c.Checksum != nil && algorithms[c.Checksum.Algorithm] == nil:
		return u, fmt.Errorf("no checksum algorithm %q", c.Checksum.Algorithm)
	}
	for u.Offset < u.Size {
		if len(u.parts) >= sparePartCount+int(u.Size/PartSize) {
			return u, errScattered
		}
		more, err := s.appendPart(ctx, &u, c)
		if errors.Is(err, ErrMediaType) || errors.Is(err, ErrMediaTypeClaim) {
			s.removeUpload(ctx, uploadsPrefix+place(owner, id), u.keys)
		}
		if err != nil || !more || c.Checksum != nil {
			return u, err
		}
	}
	if ended, err := atEnd(c.Body); !ended {
		return u, cmp.Or(err, error(errTooLong))
	}
	return u, nil
}

// appendPart stores the next part of a chunk; more says whether it was a full one.
func (s *Store) appendPart(ctx context.Context, u *Upload, c Chunk) (more bool, err error) {
	// What has arrived is kept though the caller has gone.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	limit := min(PartSize, u.Size-u.Offset)
	source := &untilError{r: io.LimitReader(c.Body, limit)}
	body, sum := io.Reader(source), hash.Hash(nil)
	if c.Checksum != nil {
		sum = algorithms[c.Checksum.Algorithm]()
		body = io.TeeReader(body, sum)
	}
	key := uploadsPrefix + place(u.owner, u.ID) + "/" + fmt.Sprintf(offsetForm, u.Offset)
	got, err := s.write(ctx, key, object{mediaType: opaqueType, limit: limit, once: true, accept: func(got written) error {
		if c.Checksum != nil {
			if source.err != nil {
				return source.err
			}
			if ended, err := atEnd(c.Body); !ended {
				return cmp.Or(err, error(errChunkLarge))
			}
			if !bytes.Equal(sum.Sum(nil), c.Checksum.Value) {
				return ErrChecksum
			}
		}
		if got.size == 0 {
			return cmp.Or(source.err, errNothing)
		}
		if u.Offset == 0 && (len(got.head) == sniffLength || got.size == u.Size) {
			_, err := decide(got.head, u.MediaType)
			return err
		}
		return nil
	}}, body)
	switch {
	case errors.Is(err, errNothing):
		return false, nil
	case errors.Is(err, errExists):
		return false, ErrOffset
	case err != nil:
		return false, err
	}
	u.keys = append(u.keys, key)
	u.parts = append(u.parts, part{u.Offset, got.size})
	u.Offset += got.size
	return got.size == limit, source.err
}

// errNothing says that a chunk has no more bytes.
var errNothing = errors.New("no bytes")

// untilError ends where its reader fails, and keeps the failure.
type untilError struct {
	r   io.Reader
	err error
}

func (u *untilError) Read(p []byte) (int, error) {
	n, err := u.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		u.err, err = err, io.EOF
	}
	return n, err
}

// atEnd says whether r has no more bytes, by reading one.
func atEnd(r io.Reader) (bool, error) {
	n, err := io.ReadFull(r, make([]byte, 1))
	if n == 0 && errors.Is(err, io.EOF) {
		return true, nil
	}
	if n > 0 {
		err = nil
	}
	return false, err
}

// Finish makes the blob of an upload that has all its bytes. When these are not what
// was announced, the error is that of Put and the upload is gone; after any other
// error Finish can be called again, in any process. So it can after a success, as
// long as the upload is not swept away.
func (s *Store) Finish(ctx context.Context, owner, id string) (Info, error) {
	release, err := s.hold(owner, id)
	if err != nil {
		return Info{}, err
	}
	defer release()
	// Nobody has to wait for it, and half of it is worth nothing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	u, err := s.Upload(ctx, owner, id)
	switch {
	case err != nil:
		return Info{}, err
	case u.Complete:
		return s.Stat(ctx, u.Sum)
	case u.Offset < u.Size:
		return Info{}, ErrUnfinished
	}
	folder := uploadsPrefix + place(owner, id)
	contents := &joined{ctx: ctx, store: s, folder: folder, parts: u.parts}
	defer contents.end()
	info, err := s.Put(ctx, contents, Expect{Limit: u.Size, Sum: u.Sum, MediaType: u.MediaType})
	if err != nil {
		for _, final := range []error{ErrSum, ErrMediaType, ErrMediaTypeClaim} {
			if errors.Is(err, final) {
				s.removeUpload(ctx, folder, u.keys)
				return Info{}, err
			}
		}
		// Another process may have finished it, and removed the parts, meanwhile.
		if now, failed := s.Upload(ctx, owner, id); failed == nil && now.Complete {
			return s.Stat(ctx, u.Sum)
		}
		return Info{}, err
	}
	content, err := json.Marshal(record{Size: u.Size, Sum: u.Sum.String(), MediaType: u.MediaType, Metadata: u.Metadata})
	if err != nil {
		return Info{}, fmt.Errorf("write down an upload: %w", err)
	}
	if err := s.save(ctx, donePrefix+place(owner, id), content); err != nil {
		return Info{}, err
	}
	s.removeUpload(ctx, folder, u.keys)
	return info, nil
}

// Abort ends an upload and removes what was kept of it, or returns ErrUploadUnknown.
// A blob that it has become stays.
func (s *Store) Abort(ctx context.Context, owner, id string) error {
	release, err := s.hold(owner, id)
	if err != nil {
		return err
	}
	defer release()
	u, err := s.Upload(ctx, owner, id)
	if err != nil {
		return err
	}
	if u.Complete {
		s.removeAll(ctx, donePrefix+place(owner, id))
		return nil
	}
	s.removeUpload(ctx, uploadsPrefix+place(owner, id), u.keys)
	return nil
}

// hold keeps others of this process from an upload until release is called.
func (s *Store) hold(owner, id string) (release func(), err error) {
	if !validID(id) {
		return nil, ErrUploadUnknown
	}
	name := place(owner, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[name] {
		return nil, ErrBusy
	}
	s.busy[name] = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.busy, name)
	}, nil
}

// removeUpload removes an upload's objects: first what makes it one.
func (s *Store) removeUpload(ctx context.Context, folder string, keys []string) {
	slices.SortStableFunc(keys, func(a, b string) int {
		return cmp.Compare(strings.Index(b, "/"+beginKey), strings.Index(a, "/"+beginKey))
	})
	s.removeAll(ctx, keys...)
	if s.folder != "" {
		os.Remove(filepath.Join(s.folder, folder))
	}
}

// removeEmptyFolders removes those of uploads that killed processes left.
func (s *Store) removeEmptyFolders(before time.Time) {
	if s.folder == "" {
		return
	}
	folder := filepath.Join(s.folder, uploadsPrefix)
	entries, _ := os.ReadDir(folder) // there may be none yet
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && info.ModTime().Before(before) {
			os.Remove(filepath.Join(folder, entry.Name())) // which a folder with files in it refuses
		}
	}
}

// save stores what is kept about an upload.
func (s *Store) save(ctx context.Context, key string, content []byte) error {
	_, err := s.write(ctx, key, object{mediaType: opaqueType, limit: recordLimit}, bytes.NewReader(content))
	return err
}

func (s *Store) load(ctx context.Context, key string) (record, error) {
	r, err := s.read(ctx, key, 0, recordLimit)
	if err != nil {
		return record{}, err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	if err != nil {
		return record{}, storeError(ctx, err, "read "+key)
	}
	var got record
	if err := json.Unmarshal(content, &got); err != nil {
		return record{}, errDamaged.Because(err)
	}
	return got, nil
}

// joined reads the parts of an upload as one.
type joined struct {
	ctx    context.Context // io.Reader has no other place for it
	store  *Store
	folder string
	parts  []part
	left   int64         // of the part that is open
	open   io.ReadCloser // nil between parts
}

func (j *joined) Read(p []byte) (int, error) {
	if j.open == nil {
		if len(j.parts) == 0 {
			return 0, io.EOF
		}
		r, err := j.store.read(j.ctx, j.folder+"/"+fmt.Sprintf(offsetForm, j.parts[0].offset), 0, -1)
		if err != nil {
			return 0, err
		}
		j.open, j.left, j.parts = r, j.parts[0].size, j.parts[1:]
	}
	n, err := j.open.Read(p[:min(int64(len(p)), j.left)])
	j.left -= int64(n)
	switch {
	case j.left == 0:
		err = nil
		j.end()
	case errors.Is(err, io.EOF):
		err = errDamaged
	case err != nil:
		err = storeError(j.ctx, err, "read a part of an upload")
	}
	return n, err
}

// end closes the part that is open.
func (j *joined) end() {
	if j.open != nil {
		j.open.Close()
		j.open = nil
	}
}
