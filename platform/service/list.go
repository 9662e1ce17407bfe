package service

import "github.com/marquee-ads/marquee/platform/paging"

// PageOf is the page that a request asks for.
func PageOf(req interface {
	GetPageSize() int32
	GetPageToken() string
}) paging.Page {
	return paging.Page{Size: int(req.GetPageSize()), Token: req.GetPageToken()}
}

// Messages turns a list of the domain's into messages, or back.
func Messages[T, M any](list []T, message func(T) M) []M {
	all := make([]M, len(list))
	for i, value := range list {
		all[i] = message(value)
	}
	return all
}
