// What AsyncAws finds at the metadata service, as one line of JSON.
require 'AsyncAws/Core/autoload.php';

$provider = new AsyncAws\Core\Credentials\InstanceProvider();
$found = $provider->getCredentials(AsyncAws\Core\Configuration::create([]));
echo json_encode([$found->getAccessKeyId(), $found->getSecretKey(), $found->getSessionToken()]);
