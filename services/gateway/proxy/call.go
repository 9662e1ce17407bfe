package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/backend"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/requestid"
	"github.com/marquee-ads/marquee/services/gateway/stage"
)

// handle is every call's way through the door.
func (d *Door) handle(_ any, stream grpc.ServerStream) error {
	ctx := stream.Context()
	path, _ := grpc.MethodFromServerStream(stream)
	// A copy of the call's own, so that it can be changed.
	md, _ := metadata.FromIncomingContext(ctx)
	subtype := md["content-type"]
	stage.Clean(md)
	call := &stage.Call{
		Door:     stage.GRPC,
		Target:   path,
		Client:   clientOf(ctx),
		Metadata: md,
		Start:    time.Now(),
	}
	md[stage.ForwardedFor] = []string{call.Client}
	snapshot := d.opts.Catalog.Snapshot()
	if method, ok := snapshot.Method(path); ok {
		call.Method = method
	} else {
		d.opts.Catalog.Missing()
	}

	var request backend.Frame
	defer request.Free()
	if call.Method != nil && !call.Method.ClientStreams && protobuf(subtype) {
		call.Receive = func(context.Context) error { return receiveOne(stream, &request) }
	}

	err := d.opts.Stages.Run(ctx, call, func(ctx context.Context, call *stage.Call) error {
		switch {
		case call.Method == nil && !snapshot.Complete():
			return catalog.ErrIncomplete
		case call.Method == nil:
			return fault.New(fault.Unimplemented, "METHOD_UNKNOWN", "there is no method %s", printable(path))
		case !protobuf(subtype):
			return fault.New(fault.Unimplemented, "CONTENT_TYPE_UNKNOWN", "messages must be protobuf: application/grpc or application/grpc+proto")
		case call.Method.Unary():
			return d.unary(ctx, call, &request, stream)
		case !call.Method.ClientStreams:
			return d.watch(ctx, call, &request, stream)
		default:
			return d.converse(ctx, call, stream)
		}
	})
	if err != nil {
		// In the trailer, because an error without a header is one that the
		// client's gRPC may repeat by itself.
		stream.SetTrailer(metadata.MD{requestid.Key: {call.RequestID}})
		return stage.StatusOf(err, call.RequestID).Err()
	}
	return nil
}

// unary is the short way for most calls: no goroutine, no stream state.
func (d *Door) unary(ctx context.Context, call *stage.Call, request *backend.Frame, stream grpc.ServerStream) error {
	ctx = metadata.NewOutgoingContext(ctx, call.Metadata)
	var reply backend.Reply
	err := call.Method.Backend.Invoke(ctx, call.Method.Path, call.Method.Idempotent, request, &reply)
	if len(reply.Trailer) > 0 {
		stream.SetTrailer(d.answer(reply.Trailer, nil))
	}
	if err != nil {
		if reply.Header != nil {
			_ = stream.SetHeader(d.answer(reply.Header, nil))
		}
		return err
	}
	defer reply.Message.Free()
	if err := stream.SetHeader(d.answer(reply.Header, call)); err != nil {
		return err
	}
	return stream.SendMsg(&reply.Message)
}

// watch is a call with one request and a stream of answers.
func (d *Door) watch(ctx context.Context, call *stage.Call, request *backend.Frame, stream grpc.ServerStream) error {
	ctx, cancel := d.streamContext(ctx, call)
	defer cancel(nil)
	answers, err := call.Method.Backend.Watch(ctx, call.Method.Path, call.Method.Idempotent, request)
	request.Free()
	if err != nil {
		return err
	}
	return d.pump(ctx, call, answers, stream)
}

// converse is a call in which the client sends more than one message.
func (d *Door) converse(ctx context.Context, call *stage.Call, stream grpc.ServerStream) error {
	ctx, cancel := d.streamContext(ctx, call)
	defer cancel(nil)
	service, err := call.Method.Backend.Open(ctx, call.Method.Path)
	if err != nil {
		return err
	}
	// It outlives this function by a moment: reading from the client ends when
	// the call has ended. Stop waits for it.
	d.uploads.Go(func() { d.upload(call, stream, service, cancel) })
	return d.pump(ctx, call, service, stream)
}

// streamContext is the context of a call that may outlast the door.
func (d *Door) streamContext(ctx context.Context, call *stage.Call) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(metadata.NewOutgoingContext(ctx, call.Metadata))
	stop := context.AfterFunc(d.leaving, func() { cancel(context.Cause(d.leaving)) })
	return ctx, func(cause error) {
		stop()
		cancel(cause)
	}
}

// answer prepares a service's header or trailer for the client. With a call it
// is the header of a success, which names the request.
func (d *Door) answer(md metadata.MD, call *stage.Call) metadata.MD {
	if md == nil {
		md = metadata.MD{}
	}
	if !d.opts.ServedBy {
		delete(md, stage.ServedBy)
	}
	if call != nil {
		md[requestid.Key] = []string{call.RequestID}
	}
	return md
}

func receiveOne(stream grpc.ServerStream, request *backend.Frame) error {
	err := stream.RecvMsg(request)
	if isEnd(err) {
		return fault.New(fault.Unimplemented, "REQUEST_MISSING", "this method takes exactly one request message").Because(errNoRequest)
	}
	return err
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) }

// protobuf says whether the content type, if any, is gRPC's with protobuf.
func protobuf(contentType []string) bool {
	if len(contentType) == 0 {
		return true
	}
	subtype, ok := strings.CutPrefix(contentType[0], "application/grpc+")
	return !ok || subtype == "proto" || strings.HasPrefix(subtype, "proto;")
}

func clientOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	if tcp, ok := p.Addr.(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap().String()
	}
	return p.Addr.String()
}

// printable makes what came from outside fit for a message: short, and ASCII.
func printable(s string) string {
	const most = 128
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
	if len(s) > most {
		clean += "..."
	}
	return clean
}
