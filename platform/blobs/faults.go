package blobs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"time"

	"gocloud.dev/gcerrors"

	"github.com/marquee-ads/marquee/platform/fault"
)

// Errors that callers tell apart.
var (
	// ErrUnknown says that there is no such blob.
	ErrUnknown = fault.New(fault.NotFound, "BLOB_UNKNOWN", "there is no blob of this name")
	// ErrUploadUnknown says that the owner has no such upload: it never began, was
	// ended, or was swept away.
	ErrUploadUnknown = fault.New(fault.NotFound, "UPLOAD_UNKNOWN", "there is no such upload; begin again")
	// ErrEmpty says that there are no contents.
	ErrEmpty = fault.New(fault.InvalidArgument, "BLOB_EMPTY", "a blob has at least one byte")
	// ErrTooLarge says that there is more than a blob may have, or was announced.
	ErrTooLarge = fault.New(fault.OutOfRange, "BLOB_TOO_LARGE", "this is larger than a blob may be")
	// ErrSum says that the contents do not have the SHA-256 that was announced.
	ErrSum = fault.New(fault.InvalidArgument, "SHA256_MISMATCH", "the contents do not have the SHA-256 that was announced")
	// ErrMediaType says that the contents are of a kind that is not taken.
	ErrMediaType = fault.New(fault.InvalidArgument, "MEDIA_TYPE_UNSUPPORTED", "the contents are not of a media type that is taken")
	// ErrMediaTypeClaim says that the contents are of another kind than was claimed.
	ErrMediaTypeClaim = fault.New(fault.InvalidArgument, "MEDIA_TYPE_MISMATCH", "the contents are of another media type than was claimed")
	// ErrOffset says that an upload is not as far as the caller thinks, or is
	// further.
	ErrOffset = fault.New(fault.Aborted, "OFFSET_MISMATCH", "the upload has another offset; ask for it and go on from there")
	// ErrBusy says that somebody else is at this upload now.
	ErrBusy = fault.New(fault.Aborted, "UPLOAD_BUSY", "another request is at this upload").WithRetryAfter(time.Second)
	// ErrChecksum says that a chunk arrived damaged; none of it was kept.
	ErrChecksum = fault.New(fault.Aborted, "CHECKSUM_MISMATCH", "the chunk does not have its checksum; send it again")
	// ErrUploadsExhausted says that the owner has too much under way.
	ErrUploadsExhausted = fault.New(fault.ResourceExhausted, "UPLOADS_EXHAUSTED", "too much is being uploaded; finish or end other uploads first")
	// ErrUnfinished says that an upload is not complete yet.
	ErrUnfinished = fault.New(fault.FailedPrecondition, "UPLOAD_UNFINISHED", "the upload is not complete")

	errName       = fault.New(fault.NotFound, "NAME_INVALID", "a blob's name is its SHA-256 as 64 hexadecimal digits in lower case")
	errOutOfRange = fault.New(fault.OutOfRange, "RANGE_INVALID", "the blob has nothing there")
	errScattered  = fault.New(fault.FailedPrecondition, "UPLOAD_SCATTERED", "the upload came in too many pieces; begin again with larger ones")
	errTooLong    = fault.New(fault.OutOfRange, "UPLOAD_TOO_LONG", "this is more than the upload's length")
	errChunkLarge = fault.New(fault.OutOfRange, "CHUNK_TOO_LARGE", "a chunk with a checksum may have at most %d bytes", PartSize)
	errCutShort   = fault.New(fault.InvalidArgument, "BODY_INCOMPLETE", "the body ended before its announced length")
	errTooSlow    = fault.New(fault.DeadlineExceeded, "BODY_TOO_SLOW", "the body came too slowly; what arrived is kept, go on from there")
	errFull       = fault.New(fault.Unavailable, "STORE_FULL", "there is no room for this at the moment").WithRetryAfter(time.Minute)
	errAway       = fault.New(fault.Unavailable, "STORE_UNAVAILABLE", "the media store is not available").WithRetryAfter(time.Second)
	errGone       = fault.New(fault.Canceled, "CANCELLED", "the caller went away")
	errDamaged    = fault.New(fault.DataLoss, "UPLOAD_DAMAGED", "what was kept of the upload is damaged; begin again")

	errMethod       = fault.New(fault.Unimplemented, "METHOD_NOT_ALLOWED", "this path does not take the method")
	errVersion      = fault.New(fault.FailedPrecondition, "TUS_VERSION_UNSUPPORTED", "the header Tus-Resumable must be %s", tusVersion)
	errContentType  = fault.New(fault.InvalidArgument, "CONTENT_TYPE_UNSUPPORTED", "the content type of a chunk is %s", chunkType)
	errPrecondition = fault.New(fault.FailedPrecondition, "PRECONDITION_FAILED", "the blob is not as the request wants it")
)

// httpStatuses are those that say more than the status of the fault's code.
var httpStatuses = map[string]int{
	ErrTooLarge.Reason:       http.StatusRequestEntityTooLarge,
	errTooLong.Reason:        http.StatusRequestEntityTooLarge,
	errChunkLarge.Reason:     http.StatusRequestEntityTooLarge,
	ErrSum.Reason:            http.StatusUnprocessableEntity,
	ErrMediaType.Reason:      http.StatusUnsupportedMediaType,
	errContentType.Reason:    http.StatusUnsupportedMediaType,
	ErrMediaTypeClaim.Reason: http.StatusUnprocessableEntity,
	ErrBusy.Reason:           http.StatusLocked,
	ErrChecksum.Reason:       statusChecksumMismatch,
	errOutOfRange.Reason:     http.StatusRequestedRangeNotSatisfiable,
	errTooSlow.Reason:        http.StatusRequestTimeout,
	errFull.Reason:           http.StatusInsufficientStorage,
	errMethod.Reason:         http.StatusMethodNotAllowed,
	errVersion.Reason:        http.StatusPreconditionFailed,
	errPrecondition.Reason:   http.StatusPreconditionFailed,
}

// statusChecksumMismatch is tus's own.
const statusChecksumMismatch = 460

// invalid is a request that says something wrong in a header.
func invalid(header, rule, want string) error {
	return fault.New(fault.InvalidArgument, "HEADER_INVALID", "the header %s %s", header, want).
		WithField("header."+header, rule, want)
}

// storeError is what a failure of the bucket is to callers; doing says what the
// store was about to do.
func storeError(ctx context.Context, err error, doing string) error {
	if f, ok := fault.From(err); ok {
		return f
	}
	err = fmt.Errorf("%s: %w", doing, err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errFull.Because(err)
	case errors.Is(ctx.Err(), context.Canceled):
		return errGone.Because(err)
	case gcerrors.Code(err) == gcerrors.NotFound:
		return ErrUnknown.Because(err)
	default:
		return errAway.Because(err)
	}
}
