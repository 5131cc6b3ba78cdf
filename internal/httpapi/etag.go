package httpapi

import (
	"strconv"
	"strings"

	"steward/internal/fault"
)

// ETag is the strong entity tag of a thing at a revision (RFC 9110 section 8.8.3). Operations send it
// in a field `header:"ETag"` of their output; GET answers with it are turned into 304 by themselves
// when the caller's If-None-Match has it.
func ETag(rev int64) string { return `"` + strconv.FormatInt(rev, 10) + `"` }

// CheckMatch compares the caller's If-Match with the revision that the thing has (RFC 9110 section
// 13.1.1): nil when it is absent, "*" or lists the revision, fault.Precondition when it does not,
// *fault.Invalid when it is no list of entity tags. Call it inside of the transaction of the change.
func CheckMatch(ifMatch string, rev int64) error {
	tags, star, err := parseTags(ifMatch)
	if err != nil {
		return fault.Bad("header.If-Match", "%s", err)
	}
	if star || len(tags) == 0 {
		return nil
	}
	want := ETag(rev)
	for _, tag := range tags {
		if tag == want { // a weak tag never matches here
			return nil
		}
	}
	return fault.New(fault.Precondition,
		"it was changed meanwhile: it is at revision %d now; read it again and repeat the change", rev)
}

// NotModified tells whether the caller's If-None-Match lists the tag (weak comparison), so that 304
// is the answer. A malformed header counts as absent, as RFC 9110 section 13.1.2 has nothing to refuse.
func NotModified(ifNoneMatch, tag string) bool {
	tags, star, err := parseTags(ifNoneMatch)
	if err != nil || tag == "" {
		return false
	}
	for _, t := range tags {
		if strings.TrimPrefix(t, "W/") == strings.TrimPrefix(tag, "W/") {
			return true
		}
	}
	return star
}

// parseTags reads a list of entity tags or "*".
func parseTags(header string) (tags []string, star bool, err error) {
	rest := strings.TrimSpace(header)
	if rest == "*" {
		return nil, true, nil
	}
	for rest != "" {
		weak := strings.HasPrefix(rest, "W/")
		body := strings.TrimPrefix(rest, "W/")
		if !strings.HasPrefix(body, `"`) {
			return nil, false, errTag
		}
		end := strings.IndexByte(body[1:], '"')
		if end < 0 {
			return nil, false, errTag
		}
		tag := body[:end+2]
		rest = strings.TrimSpace(body[end+2:])
		if weak {
			tag = "W/" + tag
		}
		tags = append(tags, tag)
		if rest == "" {
			break
		}
		if !strings.HasPrefix(rest, ",") {
			return nil, false, errTag
		}
		rest = strings.TrimSpace(rest[1:])
	}
	return tags, false, nil
}

var errTag = fault.New(fault.Unprocessable, `want entity tags in double quotes, as in "12", or *`)
