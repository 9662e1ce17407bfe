package blobs

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

const owner = "org_1"

func begin(t testing.TB, s *Store, content []byte) Upload {
	t.Helper()
	u, err := s.Begin(t.Context(), owner, Announcement{Size: int64(len(content)), Sum: sha256.Sum256(content)})
	require.NoError(t, err)
	return u
}

// add appends content[from:to].
func add(t testing.TB, s *Store, u Upload, content []byte, from, to int) Upload {
	t.Helper()
	got, err := s.Append(t.Context(), owner, u.ID, Chunk{Offset: int64(from), Length: int64(to - from), Body: bytes.NewReader(content[from:to])})
	require.NoError(t, err)
	require.Equal(t, int64(to), got.Offset)
	return got
}

func TestUpload(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		content := png(2*PartSize+1000, 20)
		sum := Sum(sha256.Sum256(content))
		u, err := s.Begin(t.Context(), owner, Announcement{
			Size: int64(len(content)), Sum: sum, MediaType: "image/png", Metadata: "filename eA==",
		})
		require.NoError(t, err)
		_, err = s.Finish(t.Context(), owner, u.ID)
		require.ErrorIs(t, err, ErrUnfinished)

		add(t, s, u, content, 0, 100)
		add(t, s, u, content, 100, 5000)
		// Another process goes on.
		other := open(Limits{})
		got, err := other.Upload(t.Context(), owner, u.ID)
		require.NoError(t, err)
		require.Equal(t, []any{u.ID, int64(5000), int64(len(content)), sum, "image/png", "filename eA==", false},
			[]any{got.ID, got.Offset, got.Size, got.Sum, got.MediaType, got.Metadata, got.Complete})
		add(t, other, u, content, 5000, len(content))

		_, err = s.Stat(t.Context(), sum)
		require.ErrorIs(t, err, ErrUnknown, "it is no blob yet")
		info, err := s.Finish(t.Context(), owner, u.ID)
		require.NoError(t, err)
		require.Equal(t, Info{Sum: sum, Size: int64(len(content)), MediaType: "image/png"}, info)
		require.True(t, bytes.Equal(content, get(t, s, sum)))

		for range 2 {
			info, err = other.Finish(t.Context(), owner, u.ID)
			require.NoError(t, err)
			require.Equal(t, sum, info.Sum)
		}
		got, err = s.Upload(t.Context(), owner, u.ID)
		require.NoError(t, err)
		require.True(t, got.Complete)
		require.Equal(t, int64(len(content)), got.Offset)
		require.Equal(t, "filename eA==", got.Metadata)
		require.Len(t, keys(t, s), 2, "the blob, and that it was finished")

		require.NoError(t, s.Abort(t.Context(), owner, u.ID))
		_, err = s.Upload(t.Context(), owner, u.ID)
		require.ErrorIs(t, err, ErrUploadUnknown)
		require.Equal(t, []string{sum.key()}, keys(t, s))
	})
}

func TestBeginRefuses(t *testing.T) {
	s := folderStore(t, Limits{BlobSize: 1000})
	for name, test := range map[string]struct {
		a    Announcement
		want error
	}{
		"Empty":        {Announcement{Size: 0, Sum: Sum{1}}, ErrEmpty},
		"Negative":     {Announcement{Size: -1, Sum: Sum{1}}, ErrEmpty},
		"TooLarge":     {Announcement{Size: 1001, Sum: Sum{1}}, ErrTooLarge},
		"NoSum":        {Announcement{Size: 10}, ErrSum},
		"MediaType":    {Announcement{Size: 10, Sum: Sum{1}, MediaType: "text/html"}, ErrMediaType},
		"SVG":          {Announcement{Size: 10, Sum: Sum{1}, MediaType: "image/svg+xml"}, ErrMediaType},
		"NoMediaType":  {Announcement{Size: 10, Sum: Sum{1}, MediaType: "png"}, ErrMediaType},
		"OtherCharset": {Announcement{Size: 10, Sum: Sum{1}, MediaType: "text/plain; charset=latin1"}, ErrMediaType},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Begin(t.Context(), owner, test.a)
			require.ErrorIs(t, err, test.want)
		})
	}
	_, err := s.Begin(t.Context(), owner, Announcement{Size: 10, Sum: Sum{1}, Metadata: strings.Repeat("x", 4097)})
	require.ErrorContains(t, err, "METADATA_TOO_LARGE")
	require.Empty(t, keys(t, s))
}

func TestLimitsOfAnOwner(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{BlobSize: 1000, OwnerBytes: 2500, OwnerUploads: 4})
		content := png(1000, 21)
		first, second := begin(t, s, content), begin(t, s, content)
		_, err := s.Begin(t.Context(), owner, Announcement{Size: 501, Sum: Sum{1}})
		require.ErrorIs(t, err, ErrUploadsExhausted, "bytes")
		begin(t, s, content[:250])
		begin(t, s, content[:250])
		_, err = s.Begin(t.Context(), owner, Announcement{Size: 1, Sum: Sum{1}})
		require.ErrorIs(t, err, ErrUploadsExhausted, "uploads")
		_, err = s.Begin(t.Context(), "org_2", Announcement{Size: 1000, Sum: Sum{1}})
		require.NoError(t, err, "another owner")

		require.NoError(t, s.Abort(t.Context(), owner, first.ID))
		third := begin(t, s, content)
		add(t, s, second, content, 0, 1000)
		_, err = s.Finish(t.Context(), owner, second.ID)
		require.NoError(t, err)
		begin(t, s, content)
		require.NoError(t, s.Abort(t.Context(), owner, third.ID))
	})
	t.Run("ManyAtOnce", func(t *testing.T) {
		s := folderStore(t, Limits{OwnerUploads: 3})
		var begun sync.Map
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				if _, err := s.Begin(t.Context(), owner, Announcement{Size: 1, Sum: Sum{1}}); err == nil {
					begun.Store(i, true)
				} else if !errors.Is(err, ErrUploadsExhausted) {
					t.Error(err)
				}
			})
		}
		all.Wait()
		n := 0
		begun.Range(func(any, any) bool { n++; return true })
		require.LessOrEqual(t, n, 3)
	})
}

func TestAppendRefuses(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		content := png(10_000, 22)
		u := begin(t, s, content)
		add(t, s, u, content, 0, 1000)
		broken := errors.New("the wire broke")
		for _, test := range []struct {
			name  string
			chunk Chunk
			want  error
			at    int64
		}{
			{"Before", Chunk{Offset: 0, Length: 10, Body: strings.NewReader("0123456789")}, ErrOffset, 1000},
			{"Beyond", Chunk{Offset: 1001, Length: 10, Body: strings.NewReader("0123456789")}, ErrOffset, 1000},
			{"Negative", Chunk{Offset: -1, Length: 10, Body: strings.NewReader("0123456789")}, ErrOffset, 1000},
			{"TooLongAsItSays", Chunk{Offset: 1000, Length: 9001, Body: iotest.ErrReader(errors.New("read"))}, errTooLong, 1000},
			{"FailingAtOnce", Chunk{Offset: 1000, Length: 10, Body: iotest.ErrReader(broken)}, broken, 1000},
			{"Nothing", Chunk{Offset: 1000, Length: 0, Body: strings.NewReader("")}, nil, 1000},
			{"Truncated", Chunk{Offset: 1000, Length: 9000, Body: io.MultiReader(bytes.NewReader(content[1000:3000]), iotest.ErrReader(io.ErrUnexpectedEOF))}, io.ErrUnexpectedEOF, 3000},
		} {
			t.Run(test.name, func(t *testing.T) {
				got, err := s.Append(t.Context(), owner, u.ID, test.chunk)
				require.ErrorIs(t, err, test.want)
				require.Equal(t, test.at, got.Offset)
				got, err = s.Upload(t.Context(), owner, u.ID)
				require.NoError(t, err)
				require.Equal(t, test.at, got.Offset, "and so it is kept")
			})
		}
		for _, id := range []string{"", "..", u.ID[1:], strings.ToLower(u.ID), strings.Repeat("A", 26), "../" + u.ID[3:]} {
			_, err := s.Append(t.Context(), owner, id, Chunk{Offset: 0, Body: strings.NewReader("x")})
			require.ErrorIs(t, err, ErrUploadUnknown, "%q", id)
		}
		for _, who := range []string{"org_2", "", "../org_1"} {
			_, err := s.Upload(t.Context(), who, u.ID)
			require.ErrorIs(t, err, ErrUploadUnknown, "another owner")
			require.ErrorIs(t, s.Abort(t.Context(), who, u.ID), ErrUploadUnknown)
		}
		t.Run("TooLongWithoutSaying", func(t *testing.T) {
			got, err := s.Append(t.Context(), owner, u.ID, Chunk{Offset: 3000, Length: -1, Body: bytes.NewReader(append(content[3000:], 'x'))})
			require.ErrorIs(t, err, errTooLong)
			require.Equal(t, int64(10_000), got.Offset)
		})
		_, err := s.Finish(t.Context(), owner, u.ID)
		require.NoError(t, err)
		require.Equal(t, content, get(t, s, u.Sum))
		_, err = s.Append(t.Context(), owner, u.ID, Chunk{Offset: 0, Length: 1, Body: strings.NewReader("x")})
		require.ErrorIs(t, err, ErrOffset, "it is complete")
	})
}

func TestChecksum(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		content := png(PartSize+10, 23)
		u := begin(t, s, content)
		sha := func(b []byte) *Checksum {
			sum := sha1.Sum(b)
			return &Checksum{Algorithm: "sha1", Value: sum[:]}
		}
		for _, test := range []struct {
			name string
			body io.Reader
			sum  *Checksum
			want error
		}{
			{"Mismatch", bytes.NewReader(content[:500]), sha(content[:501]), ErrChecksum},
			{"Truncated", io.MultiReader(bytes.NewReader(content[:500]), iotest.ErrReader(io.ErrUnexpectedEOF)), sha(content[:500]), io.ErrUnexpectedEOF},
			{"TooLarge", bytes.NewReader(content[:PartSize+1]), sha(content[:PartSize+1]), errChunkLarge},
		} {
			got, err := s.Append(t.Context(), owner, u.ID, Chunk{Length: -1, Body: test.body, Checksum: test.sum})
			require.ErrorIs(t, err, test.want, test.name)
			require.Zero(t, got.Offset, "nothing of it is kept")
		}
		_, err := s.Append(t.Context(), owner, u.ID, Chunk{Length: -1, Body: strings.NewReader("x"), Checksum: &Checksum{Algorithm: "md5"}})
		require.ErrorContains(t, err, "md5")
		for from := 0; from < len(content); {
			to := min(from+PartSize, len(content))
			got, err := s.Append(t.Context(), owner, u.ID, Chunk{Offset: int64(from), Length: -1, Body: bytes.NewReader(content[from:to]), Checksum: sha(content[from:to])})
			require.NoError(t, err)
			require.Equal(t, int64(to), got.Offset)
			from = to
		}
		_, err = s.Finish(t.Context(), owner, u.ID)
		require.NoError(t, err)
	})
}

func TestUploadThatLies(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		s := open(Limits{})
		image := png(2000, 24)
		page := []byte("<!DOCTYPE html><script>alert(1)</script>" + strings.Repeat(" ", 2000))
		announce := func(content []byte, mediaType string) Upload {
			u, err := s.Begin(t.Context(), owner, Announcement{Size: int64(len(content)), Sum: sha256.Sum256(content), MediaType: mediaType})
			require.NoError(t, err)
			return u
		}
		gone := func(u Upload) {
			t.Helper()
			_, err := s.Upload(t.Context(), owner, u.ID)
			require.ErrorIs(t, err, ErrUploadUnknown)
			require.Empty(t, keys(t, s))
		}
		t.Run("AboutItsMediaType", func(t *testing.T) {
			u := announce(image, "video/mp4")
			_, err := s.Append(t.Context(), owner, u.ID, Chunk{Length: -1, Body: bytes.NewReader(image[:600])})
			require.ErrorIs(t, err, ErrMediaTypeClaim)
			gone(u)
		})
		t.Run("WithAPage", func(t *testing.T) {
			u := announce(page, "")
			_, err := s.Append(t.Context(), owner, u.ID, Chunk{Length: -1, Body: bytes.NewReader(page)})
			require.ErrorIs(t, err, ErrMediaType)
			gone(u)
		})
		t.Run("InSmallPieces", func(t *testing.T) {
			u := announce(page, "image/png")
			add(t, s, u, page, 0, 100)
			add(t, s, u, page, 100, len(page))
			_, err := s.Finish(t.Context(), owner, u.ID)
			require.ErrorIs(t, err, ErrMediaType)
			gone(u)
		})
		t.Run("WithBytesAfterText", func(t *testing.T) {
			content := []byte(strings.Repeat("x", 5000) + "\xff\xfe")
			u := announce(content, "text/plain")
			add(t, s, u, content, 0, len(content))
			_, err := s.Finish(t.Context(), owner, u.ID)
			require.ErrorIs(t, err, ErrMediaType)
			gone(u)
		})
		t.Run("AboutItsSum", func(t *testing.T) {
			u, err := s.Begin(t.Context(), owner, Announcement{Size: 2000, Sum: Sum{1}})
			require.NoError(t, err)
			add(t, s, u, image, 0, 2000)
			_, err = s.Finish(t.Context(), owner, u.ID)
			require.ErrorIs(t, err, ErrSum)
			gone(u)
		})
	})
}

// Of two who append at the same offset one gets through, and nothing is mixed up.
func TestTwoWriters(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		here, there := open(Limits{}), open(Limits{})
		content := png(100_000, 25)
		u := begin(t, here, content)
		read, write := io.Pipe()
		slow := make(chan error, 1)
		go func() {
			_, err := here.Append(t.Context(), owner, u.ID, Chunk{Length: -1, Body: read})
			slow <- err
		}()
		_, err := write.Write(content[:1000])
		require.NoError(t, err)

		_, err = here.Append(t.Context(), owner, u.ID, Chunk{Length: -1, Body: bytes.NewReader(content)})
		require.ErrorIs(t, err, ErrBusy, "in one process the second waits")
		_, err = here.Finish(t.Context(), owner, u.ID)
		require.ErrorIs(t, err, ErrBusy)
		require.ErrorIs(t, here.Abort(t.Context(), owner, u.ID), ErrBusy)

		add(t, there, u, content, 0, 60_000)
		require.NoError(t, write.Close())
		require.ErrorIs(t, <-slow, ErrOffset, "among processes the first to end wins")
		add(t, here, u, content, 60_000, 100_000)
		_, err = there.Finish(t.Context(), owner, u.ID)
		require.NoError(t, err)
		require.Equal(t, content, get(t, here, u.Sum))
	})
}

// What is written once is written by one.
func TestWrittenOnce(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		var stores []*Store
		for range 8 {
			stores = append(stores, open(Limits{}))
		}
		for round := range 20 {
			key := fmt.Sprintf("%sround/%d", uploadsPrefix, round)
			var won atomic.Int32
			var all sync.WaitGroup
			for i, s := range stores {
				all.Go(func() {
					_, err := s.write(t.Context(), key, object{mediaType: opaqueType, limit: 1, once: true}, strings.NewReader(strconv.Itoa(i)))
					if err == nil {
						won.Add(1)
					} else if !errors.Is(err, errExists) {
						t.Error(err)
					}
				})
			}
			all.Wait()
			require.Equal(t, int32(1), won.Load())
		}
	})
}

// Many processes hammer at one upload; whatever each is told, the blob comes right.
func TestManyWriters(t *testing.T) {
	onEach(t, func(t *testing.T, open func(Limits) *Store) {
		content := png(50_000, 26)
		u := begin(t, open(Limits{}), content)
		var all sync.WaitGroup
		for i := range 4 {
			s := open(Limits{})
			all.Go(func() {
				for range 1000 { // bounded; each round somebody gets on
					at, err := s.Upload(t.Context(), owner, u.ID)
					if err != nil || at.Complete {
						if err != nil {
							t.Error(err)
						}
						return
					}
					if at.Offset == at.Size {
						_, err = s.Finish(t.Context(), owner, u.ID)
					} else {
						to := min(at.Offset+int64(2000+i*100), at.Size)
						_, err = s.Append(t.Context(), owner, u.ID, Chunk{Offset: at.Offset, Length: -1, Body: bytes.NewReader(content[at.Offset:to])})
					}
					if err != nil && !errors.Is(err, ErrOffset) && !errors.Is(err, ErrUnfinished) {
						t.Error(err)
						return
					}
				}
				t.Error("it never ended")
			})
		}
		all.Wait()
		require.Equal(t, content, get(t, open(Limits{}), u.Sum))
	})
}

// An upload in crumbs ends, instead of filling the store with them.
func TestScattered(t *testing.T) {
	s := folderStore(t, Limits{})
	content := png(5000, 27)
	u := begin(t, s, content)
	folder := filepath.Join(s.folder, uploadsPrefix, place(owner, u.ID))
	for i := range sparePartCount {
		require.NoError(t, os.WriteFile(filepath.Join(folder, fmt.Sprintf(offsetForm, i)), content[i:i+1], 0o600))
	}
	_, err := s.Append(t.Context(), owner, u.ID, Chunk{Offset: sparePartCount, Length: -1, Body: bytes.NewReader(content[sparePartCount:])})
	require.ErrorIs(t, err, errScattered)
}

// What a machine that lost power may have left does not become a blob.
func TestDamagedUpload(t *testing.T) {
	s := folderStore(t, Limits{})
	content := png(2000, 28)
	u := begin(t, s, content)
	add(t, s, u, content, 0, 1000)
	add(t, s, u, content, 1000, 2000)
	key := uploadsPrefix + place(owner, u.ID) + "/" + fmt.Sprintf(offsetForm, 0)
	_, err := s.write(t.Context(), key, object{mediaType: opaqueType, limit: 1000}, bytes.NewReader(make([]byte, 1000)))
	require.NoError(t, err)
	_, err = s.Finish(t.Context(), owner, u.ID)
	require.ErrorIs(t, err, ErrMediaType)
	require.Empty(t, keys(t, s))
}

// A process that is killed while it removes an upload leaves nothing that looks like
// one that is not as far.
func TestRemovalBeginsWithTheUpload(t *testing.T) {
	s := folderStore(t, Limits{})
	content := png(2000, 29)
	u := begin(t, s, content)
	u = add(t, s, u, content, 0, 1000)
	u = add(t, s, u, content, 1000, 2000)
	s.removeUpload(t.Context(), uploadsPrefix+place(owner, u.ID), u.keys)
	require.Len(t, u.keys, 3)
	require.Contains(t, u.keys[0], beginKey, "they are removed in this order")
	require.Empty(t, keys(t, s))
}
