"""Ascend graphs compiled on a machine without NPU and CANN: what stands in for CANN (`cann_stub`), for an installed
operator package (`operator_package`), and where ACL's headers come from (`acl_headers`). Nothing is executed."""
