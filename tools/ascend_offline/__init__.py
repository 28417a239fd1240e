"""Compiles Ascend graphs on a machine without NPU and CANN. Nothing is executed.

`cann_stub` builds stand-ins for CANN's libraries, `operator_package` writes a stand-in for an installed operator
package, `acl_headers` finds ACL's headers, and `simulation` starts MindSpore with them.
"""
