# Asks cloud-init's search, which runs before anything else of it, what it makes of a machine: $1 is the UUID and $2 the
# serial number in SMBIOS, $3 what the operator has configured, $4 to $6 manufacturer, product and asset tag in SMBIOS. Prints
# what it tells cloud-init.
mkdir -p /tmp/dmi /tmp/config /tmp/run
echo "$1" >/tmp/dmi/product_uuid
echo "$2" >/tmp/dmi/product_serial
echo "$4" >/tmp/dmi/sys_vendor
echo "$5" >/tmp/dmi/product_name
echo "$6" >/tmp/dmi/chassis_asset_tag
echo "$3" >/tmp/config/99-operator.cfg
: >/tmp/cmdline
export PATH_RUN=/tmp/run PATH_SYS_CLASS_DMI_ID=/tmp/dmi PATH_ETC_CI_CFG_D=/tmp/config PATH_PROC_CMDLINE=/tmp/cmdline
if /usr/lib/cloud-init/ds-identify --force; then
    cat /tmp/run/cloud-init/cloud.cfg
else
    echo disabled
fi
