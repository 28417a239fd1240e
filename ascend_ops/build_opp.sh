#!/usr/bin/env bash
# Builds and installs the operator package of the AscendC kernels, on a host with CANN. Unverified on hardware.
#
#   bash ascend_ops/build_opp.sh [--soc "ascend910;ascend910b;ascend910_93"] [--output DIR]
#
# Afterwards the operators can be called by name: `recipes/run_910.sh` finds the package in ascend_ops/_build/opp, other
# programs need the variable printed at the end. MindSpore's custom_compiler builds it with CANN's project template. The
# emulator runs the same sources without CANN (docs/kernels.md).
set -eu

FOLDER=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
SOC='ascend910;ascend910b;ascend910_93'
OUTPUT=$FOLDER/_build/opp
VENDOR=mindpangu
OLDEST_CANN=8.2

log() { printf '%s\n' "$*"; }
die() { printf 'build_opp: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
    case $1 in
        --soc|--output)
            [ $# -gt 1 ] || die "$1 needs a value"
            if [ "$1" = --soc ]; then SOC=$2; else OUTPUT=$2; fi
            shift 2 ;;
        -h|--help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) die "unknown argument $1; --help lists the known ones" ;;
    esac
done

# Refuses chips for which the kernels have no definition.
check_soc() {
    local soc
    for soc in $(tr ';,' '  ' <<<"$1"); do
        case $soc in
            ascend910 | ascend910b | ascend910_93) ;;
            *) die "--soc $soc is not known; allowed: ascend910, ascend910b, ascend910_93, or several separated by ;" ;;
        esac
    done
}

# Prints the folder of CANN, which its set_env.sh exports.
find_cann() {
    local folder
    for folder in "${ASCEND_HOME_PATH:-}" /usr/local/Ascend/cann /usr/local/Ascend/ascend-toolkit/latest; do
        if [ -n "$folder" ] && [ -d "$folder" ]; then echo "$folder"; return; fi
    done
    die "no CANN here: source its set_env.sh, which sets ASCEND_HOME_PATH, or install the toolkit ($OLDEST_CANN or newer)"
}

# Refuses a CANN that MindSpore 2.10 does not support, or one without the project template.
check_cann() {
    local info version=''
    for info in "$1"/version.cfg "$1"/compiler/version.info "$1"/version.info; do
        if [ -r "$info" ]; then
            version=$(grep -oE '[0-9]+\.[0-9]+' "$info" | head -n 1)
            break
        fi
    done
    [ -n "$version" ] || die "$1 has no version file: is it the toolkit of CANN?"
    [ "$(printf '%s\n%s\n' "$OLDEST_CANN" "$version" | sort -V | head -n 1)" = "$OLDEST_CANN" ] ||
        die "CANN $version is too old: MindSpore 2.10 takes $OLDEST_CANN or newer"
    local template=$1/tools/op_project_templates/ascendc
    local sample=$1/tools/msopgen/template/operator_demo_projects/ascendc_operator_sample
    if [ -d "$template/customize" ] && [ -d "$template/common" ]; then
        check_initial_values "$1" "$template"
    elif [ -d "$sample" ]; then
        check_initial_values "$1" "$sample"
    else
        die "no operator project in $template/customize and common: install the toolkit, not only the runtime"
    fi
    log "CANN $version in $1"
}

# Refuses a CANN whose operator project ($2 is its folder) drops the initial values of outputs. It would do so silently,
# and the SyncAll of 910A would count from whatever is in memory. The script that knows the values is in the project or
# in CANN's CMake modules.
check_initial_values() {
    local folder scripts script
    for folder in "$2" "$1"/*/tikcpp/ascendc_kernel_cmake "$1"/*/*/tikcpp/ascendc_kernel_cmake; do
        scripts=$(find -L "$folder" -name ascendc_impl_build.py 2>/dev/null) || true
        if [ -n "$scripts" ]; then break; fi
    done
    [ -n "$scripts" ] || die "no ascendc_impl_build.py in $2 or in CANN's tikcpp/ascendc_kernel_cmake:" \
        "cannot tell whether outputs get their initial values; install another CANN ($OLDEST_CANN or newer)"
    while read -r script; do
        grep -q output_init_value "$script" || die "$script does not know output_init_value: this CANN would drop the" \
            "initial zeros that SyncAll counts in on 910A; install a newer one"
    done <<<"$scripts"
}

# Prints the path of MindSpore's custom_compiler.
find_compiler() {
    local python=${MINDPANGU_PYTHON:-python3} folder
    folder=$("$python" -c 'import importlib.util as u; print(u.find_spec("mindspore").submodule_search_locations[0])' \
        2>/dev/null) || die "$python has no MindSpore: activate its environment, or set MINDPANGU_PYTHON"
    folder=$folder/lib/plugin/ascend/custom_compiler
    [ -r "$folder/setup.py" ] || die "this MindSpore has no $folder: it is a build without Ascend"
    echo "$folder"
}

check_soc "$SOC"
CANN=$(find_cann)
check_cann "$CANN"
COMPILER=$(find_compiler)
mkdir -p "$OUTPUT"
OUTPUT=$(CDPATH='' cd -- "$OUTPUT" && pwd -P)

# All operators form one project. The compiler writes next to itself, so it runs on a copy.
WORK=$(mktemp -d)
case $WORK in *[!A-Za-z0-9_./-]*) die "the compiler cannot work in $WORK: set TMPDIR to a plain path" ;; esac
trap 'rm -rf "$WORK"' EXIT
cp -r "$COMPILER" "$WORK/compiler"
mkdir "$WORK/op_host" "$WORK/op_kernel"
cp "$FOLDER"/*/ascend/op_host/*.cpp "$FOLDER"/*/ascend/op_host/*.h "$WORK/op_host/"
cp "$FOLDER"/ascend/rre_host.h "$FOLDER"/ascend/rre_limits.h "$WORK/op_host/"
cp "$FOLDER"/*/ascend/op_kernel/*.cpp "$FOLDER"/*/ascend/op_kernel/*.h "$WORK/op_kernel/"
cp "$FOLDER"/ascend/rre_kernel.h "$FOLDER"/ascend/rre_limits.h "$WORK/op_kernel/"

log "Building for $SOC (minutes)."
(cd "$WORK/compiler" && "${MINDPANGU_PYTHON:-python3}" setup.py --op_host_path "$WORK/op_host" \
    --op_kernel_path "$WORK/op_kernel" --soc_version "$SOC" --ascend_cann_package_path "$CANN" \
    --vendor_name "$VENDOR" --install_path "$OUTPUT") || {
    kept=$(find "$WORK/compiler" -maxdepth 1 -name '*.log' -size +0 -exec cp {} "$OUTPUT/" \; -print | xargs -r -n 1 basename)
    [ -n "$kept" ] || die "the build did not start; see the reason above"
    die "the build failed; its log is in $OUTPUT: $(echo $kept)"
}
[ -d "$OUTPUT/vendors/$VENDOR" ] || die "the build ended without a package in $OUTPUT/vendors/$VENDOR"
log "Built. Programs outside this project find the operators with"
log "  export ASCEND_CUSTOM_OPP_PATH=$OUTPUT/vendors/$VENDOR:\$ASCEND_CUSTOM_OPP_PATH"
